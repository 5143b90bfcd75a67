"""The names of files: nothing that is there is replaced, and nobody takes another's."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from kdrt.cli.image_files import ImageFiles
from kdrt.common.atomic_io import new_file
from kdrt.errors import OutputError

SUFFIXES = (".png", ".jpg")


def write(path: Path, overwrite: bool) -> None:
    with new_file(path, overwrite=overwrite) as partial:
        partial.write_text("new")


def names(folder: Path, output: str, count: int, **options: bool) -> list[str]:
    """What ``count`` files are called."""
    files = ImageFiles(folder / output, count, SUFFIXES, **options)
    return [files.save(write).name for _ in range(count)]


def test_one_file_has_its_name_and_the_next_ones_a_number(tmp_path: Path) -> None:
    assert [names(tmp_path, "out.png", 1) for _ in range(3)] == [
        ["out.png"],
        ["out-2.png"],
        ["out-3.png"],
    ]
    assert names(tmp_path, "out.jpg", 1) == ["out.jpg"]


def test_several_files_are_numbered_after_those_that_are_there(tmp_path: Path) -> None:
    assert names(tmp_path, "out.png", 2) == ["out-1.png", "out-2.png"]
    assert names(tmp_path, "out.png", 2) == ["out-3.png", "out-4.png"]
    (tmp_path / "out-2.png").unlink()
    assert names(tmp_path, "out.png", 1) == ["out.png"]
    assert names(tmp_path, "out.png", 1) == ["out-5.png"]


def test_numbers_of_other_names_do_not_count(tmp_path: Path) -> None:
    for name in ("out-20261129.png", "out-7.jpg", "about-7.png", "out-x.png", "out-7.png.txt"):
        (tmp_path / name).touch()
    assert names(tmp_path, "out.png", 2) == ["out-1.png", "out-2.png"]


def test_files_are_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("out.png", "out-1.png", "out-2.png"):
        (tmp_path / name).write_text("old")
    assert names(tmp_path, "out.png", 1, overwrite=True) == ["out.png"]
    assert names(tmp_path, "out.png", 2, overwrite=True) == ["out-1.png", "out-2.png"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"new"}


def test_a_name_that_is_taken_meanwhile_is_passed_over(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path / "out.png", 3, SUFFIXES)
    assert files.save(write).name == "out-1.png"
    for number in (2, 4):
        (tmp_path / f"out-{number}.png").write_text("another's")
    assert [files.save(write).name for _ in range(2)] == ["out-5.png", "out-6.png"]
    assert (tmp_path / "out-2.png").read_text() == "another's"


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        jobs = [pool.submit(names, tmp_path, "out.png", count) for count in (20, 1, 20)]
        taken = [name for job in jobs for name in job.result()]
    assert len(set(taken)) == 41
    assert {path.name for path in tmp_path.iterdir()} == set(taken)


def test_a_link_that_is_there_is_kept_too(tmp_path: Path) -> None:
    (tmp_path / "out.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path, "out.png", 1) == ["out-2.png"]
    assert not (tmp_path / "nowhere.png").exists()


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe-2.png")
    for output, count, overwrite, said in (
        ("folder.png", 1, False, "it is a folder"),
        ("pipe.png", 2, True, "a device or a pipe"),
        ("a.gif", 1, False, "must end in .png, .jpg"),
        (f"{'a' * 249}.png", 10, False, "over 255 bytes"),
    ):
        with pytest.raises((OutputError, ValueError), match=said):
            ImageFiles(tmp_path / output, count, SUFFIXES, overwrite=overwrite)


def test_it_is_known_whether_the_name_itself_is_taken(tmp_path: Path) -> None:
    assert not ImageFiles(tmp_path / "out.png", 1, SUFFIXES).is_taken
    (tmp_path / "out.png").touch()
    assert ImageFiles(tmp_path / "out.png", 1, SUFFIXES).is_taken
    assert not ImageFiles(tmp_path / "out.png", 2, SUFFIXES).is_taken
    assert not ImageFiles(tmp_path / "out.png", 1, SUFFIXES, overwrite=True).is_taken
