"""The record of a run, wherever it is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdrt.cli.run_record import NAME, RunRecord
from kdrt.errors import OutputError


def entry(request: str, image: int = 1, **facts: Any) -> dict[str, Any]:
    path = f"{request}-{image}.png"
    return {"request": request, "image": image, "path": path, "seed": 4 + image, **facts}


def failure(request: str, **facts: Any) -> dict[str, Any]:
    return {"request": request, "image": 1, "error": "it overflowed", **facts}


def write(folder: Path, *entries: dict[str, Any]) -> RunRecord:
    record = RunRecord(folder)
    with record.writing():
        for each in entries:
            record.add(each)
    return record


def test_what_was_added_is_known_there_and_to_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    record = write(folder, entry("a", prompt="a ●\n"), entry("b", 2), failure("c", seed=9))
    for name in ("a-1.png", "b-2.png"):
        (folder / name).write_text("an image")
    for known in (record, RunRecord(folder)):
        assert known.path_of("a", 0) == "a-1.png"
        assert known.path_of("a", 1) is None
        assert known.path_of("b", 0) is None
        assert known.path_of("b", 1) == "b-2.png"
        assert known.path_of("c", 0) is None
        # Of the first image of each.
        assert [known.seed(name) for name in "abcd"] == [5, 5, 9, None]
    assert [json.loads(line)["request"] for line in record.path.open()] == ["a", "b", "c"]


def test_an_image_that_is_not_there_any_more_is_not_made(tmp_path: Path) -> None:
    record = write(tmp_path, entry("a"))
    assert record.path_of("a", 0) is None
    (tmp_path / "a-1.png").touch()  # what a loss of power may leave of it
    assert record.path_of("a", 0) is None
    assert record.seed("a") == 5


def test_what_was_written_last_counts(tmp_path: Path) -> None:
    record = write(tmp_path, entry("a"), entry("a", path="other.png"), entry("b", path="a-1.png"))
    for name in ("a-1.png", "other.png"):
        (tmp_path / name).write_text("an image")
    assert record.path_of("a", 0) == "other.png"
    assert record.path_of("b", 0) == "a-1.png"
    # The file that b's image was in holds another one now.
    with record.writing():
        record.add(entry("c", path="a-1.png"))
    assert record.path_of("b", 0) is None
    assert RunRecord(tmp_path).path_of("b", 0) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(0, 400), tail=st.sampled_from([b"", b"\0" * 9, b'{"requ', b"{}"]))
def test_a_record_that_was_cut_anywhere_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes
) -> None:
    folder = tmp_path_factory.mktemp("record")
    names = "abcd"
    path = write(folder, *[entry(name) for name in names]).path
    for name in names:
        (folder / f"{name}-1.png").write_text("an image")
    content = path.read_bytes()[:cut]
    path.write_bytes(content + tail)
    whole = content.count(b"\n")
    record = RunRecord(folder)
    assert [record.path_of(name, 0) is not None for name in names] == [
        index < whole for index in range(len(names))
    ]
    with record.writing():
        for name in names[whole:]:
            record.add(entry(name))
    assert [json.loads(line) for line in path.open()] == [entry(name) for name in names]


@pytest.mark.parametrize(
    "content", [b'{"prompt": "a cat"}\n', b"a cat\n", b"[1]\n", b"\n", b"1\n" + b"[" * 5000 + b"\n"]
)
def test_somebody_elses_file_is_not_written_to(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(OutputError, match=r"is not kdrt's record of images, by its line 1"):
        RunRecord(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_two_runs_do_not_write_at_once(tmp_path: Path) -> None:
    first, second = RunRecord(tmp_path), RunRecord(tmp_path)
    with first.writing():
        first.add(entry("a"))
        with pytest.raises(OutputError, match="another kdrt makes images in"), second.writing():
            pass
        first.add(entry("b"))
    (tmp_path / "b-1.png").write_text("an image")
    with second.writing():
        assert second.path_of("b", 0) == "b-1.png"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="which is no folder"):
        RunRecord(tmp_path / "file")
    (tmp_path / NAME).mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        RunRecord(tmp_path)


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_half(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    record = write(tmp_path, entry("a"))
    before = record.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with record.writing():
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
            with pytest.raises(OutputError, match=r"cannot write .*images.jsonl"):
                record.add(entry("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record.path.read_bytes() == before
