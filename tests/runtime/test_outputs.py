"""Files and folders take their place whole, and what was there is not lost."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrt.cli.latents_file import save_latents
from kdrt.errors import OutputError
from kdrt.generation import Result
from kdrt.outputs import new_file, new_folder


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)


def text(folder: Path) -> str:
    return (folder / "inner" / "file").read_text()


def nothing(_: Path) -> None:
    """What of a folder is foreign, where all may be replaced."""


def test_a_folder_takes_an_empty_place(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "target") as partial:
        fill(partial, "new")
        assert not (tmp_path / "deep" / "target").exists()
    assert text(tmp_path / "deep" / "target") == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]


def test_a_folder_replaces_the_one_before_it_and_all_its_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    fill(target, "old")
    (target / "more").touch()
    with new_folder(target, nothing) as partial:
        fill(partial, "new")
        assert text(target) == "old"
    assert text(target) == "new"
    assert not (target / "more").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_vanishes_with_what_goes_wrong(tmp_path: Path) -> None:
    fill(tmp_path / "target", "old")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "target", nothing) as partial:
        (partial / "no such folder" / "file").touch()
    assert text(tmp_path / "target") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_was_there_comes_back_if_the_new_folder_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "target", Path.rename
    fill(target, "old")

    def refuse(self: Path, to: Path) -> Path:
        if to == target and text(self) == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(OutputError, match=r"cannot write .*target: Input/output error"),
        new_folder(target, nothing) as partial,
    ):
        fill(partial, "new")
    assert text(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_file_whose_folder_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with (
        pytest.raises(OutputError, match=r"cannot write .*latents: File exists"),
        new_file(tmp_path / "taken" / "latents") as partial,
    ):
        partial.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may become larger than 1000 bytes, which libraries see as they see a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(bytes(2000)),
        lambda file: save_file({"a": torch.zeros(500)}, file),
    ],
    ids=["python", "safetensors"],
)
@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_sentence(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*target: the disk is full$"),
        new_folder(tmp_path / "target") as partial,
    ):
        write(partial / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_files")
def test_latents_that_do_not_fit_on_the_disk_are_one_sentence(tmp_path: Path) -> None:
    result = Result(torch.zeros(1, 4, 16, 16), [], [])
    with pytest.raises(OutputError, match=r"cannot write .*latents.safetensors: .*too large"):
        save_latents(result, tmp_path / "latents.safetensors")
    assert not list(tmp_path.iterdir())
