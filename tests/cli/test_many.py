"""Many requests through a batcher: all are made, few are handed over at a time, none is lost."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kdrt
from kdrt.cli.many import WINDOW, Entry, Folder, Task, make_many
from kdrt.cli.requests_file import RequestLine
from kdrt.errors import OutputError
from tests.support.fake_batcher import ENDLESS, OVERFLOWS, FakeBatcher, FakeHandle

FAKE: Any = FakeBatcher


def task(number: int, prompt: str = "a", **fields: Any) -> Task:
    request = kdrt.Request(**{"prompt": prompt, "steps": 1, **fields})  # type: ignore[typeddict-item]
    line = RequestLine(number, request, None)
    seed = None if "seed" in fields else number
    return Task(line, f"digest {number}", seed, range(line.images))


def made(tasks: list[Task], folder: Folder, batcher: Any = None) -> list[Entry]:
    entries: list[Entry] = []
    make_many(tasks, lambda: batcher or FAKE(), folder, entries.append)
    return sorted(entries, key=lambda entry: (entry["line"], entry["image"]))


def colour(path: Path) -> Any:
    with Image.open(path) as image:
        return image.getpixel((0, 0))


def test_every_image_is_saved_and_said(tmp_path: Path) -> None:
    tasks = [task(1), task(2, seed=9, images_per_prompt=2), task(3, "b")]
    first, second, third, fourth = made(tasks, Folder(tmp_path))
    assert first.pop("seconds") >= 0  # type: ignore[attr-defined]
    assert first.pop("in_flight") in (True, False)  # type: ignore[attr-defined]
    assert first == {
        "line": 1,
        "image": 1,
        "path": "0001.png",
        "seed": 1,
        "prompt": "a",
        "request": "digest 1",
    }
    assert [(each["path"], each["seed"]) for each in (second, third, fourth)] == [
        ("0002-1.png", 9),
        ("0002-2.png", 10),
        ("0003.png", 3),
    ]
    assert colour(tmp_path / "0002-2.png") == (10, 0, 0)
    assert "Seed: 10" in str(kdrt.read_infotext(tmp_path / "0002-2.png"))


def test_of_a_request_only_what_is_missing_is_saved(tmp_path: Path) -> None:
    whole = task(1, images_per_prompt=3, seed=5)
    part = Task(whole.line, whole.digest, None, [1])
    assert [entry["seed"] for entry in made([part], Folder(tmp_path))] == [6]
    assert [path.name for path in tmp_path.iterdir()] == ["0001-2.png"]


def test_few_requests_are_handed_over_at_a_time(tmp_path: Path) -> None:
    batcher = FakeBatcher()
    entries = made([task(n) for n in range(1, 4 * WINDOW)], Folder(tmp_path), batcher)
    assert len(entries) == len(list(tmp_path.iterdir())) == 4 * WINDOW - 1
    assert batcher.most <= WINDOW


def test_a_request_that_fails_is_said_and_the_others_are_made(tmp_path: Path) -> None:
    tasks = [task(1), task(2, OVERFLOWS), task(3, width=0), task(4, images_per_prompt=2)]
    entries = made(tasks, Folder(tmp_path))
    assert [entry["line"] for entry in entries] == [1, 2, 3, 4, 4]
    assert entries[1] == {
        "line": 2,
        "image": 1,
        "seed": 2,
        "prompt": OVERFLOWS,
        "error": "the UNet overflowed",
        "kind": "NonFiniteError",
        "request": "digest 2",
    }
    assert entries[2]["kind"] == "InvalidRequestError"
    assert "path" not in entries[2]


def test_all_images_of_a_request_that_fails_are_said(tmp_path: Path) -> None:
    line = task(1, OVERFLOWS, images_per_prompt=3).line
    entries = made([Task(line, "digest", 40, [1, 2])], Folder(tmp_path))
    assert [(entry["image"], entry["seed"]) for entry in entries] == [(2, 41), (3, 42)]
    assert {entry["kind"] for entry in entries} == {"NonFiniteError"}


def test_an_image_to_begin_with_that_has_gone_fails_its_request_alone(tmp_path: Path) -> None:
    tasks = [task(1, image=tmp_path / "gone.png"), task(2)]
    entries = made(tasks, Folder(tmp_path))
    assert "No such file" in entries[0]["error"]
    assert entries[1]["path"] == "0002.png"


def test_files_that_are_there_are_kept(tmp_path: Path) -> None:
    (tmp_path / "0001.png").write_text("mine")
    assert made([task(1)], Folder(tmp_path))[0]["path"] == "0001-2.png"
    assert (tmp_path / "0001.png").read_text() == "mine"


def test_with_overwrite_only_images_of_the_same_file_of_requests_are_kept(tmp_path: Path) -> None:
    for name in ("0001.png", "0002.png"):
        (tmp_path / name).write_text("earlier")
    folder = Folder(tmp_path, overwrite=True, kept=frozenset(["0002.png"]))
    entries = made([task(1), task(2)], folder)
    assert [entry["path"] for entry in entries] == ["0001.png", "0002-2.png"]
    assert (tmp_path / "0002.png").read_text() == "earlier"


def test_an_interrupted_run_ends_at_once_and_what_is_saved_is_said(tmp_path: Path) -> None:
    said: list[str] = []

    def keep(entry: Entry) -> None:
        if len(said) == 1:
            signal.raise_signal(signal.SIGINT)
        said.append(entry["path"])

    before = signal.getsignal(signal.SIGINT)
    endless = [task(n, ENDLESS) for n in range(4, 100)]
    with pytest.raises(KeyboardInterrupt):
        make_many([task(1), task(2), task(3), *endless], FAKE, Folder(tmp_path), keep)
    assert sorted(said) == sorted(path.name for path in tmp_path.iterdir())
    assert len(said) in (2, 3)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_the_last_image_counts_too(tmp_path: Path) -> None:
    said: list[Entry] = []

    def keep(entry: Entry) -> None:
        said.append(entry)
        if len(said) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_many([task(1), task(2)], FAKE, Folder(tmp_path), keep)
    assert len(said) == 2


def test_a_place_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "0001.png").mkdir()
    tasks = [task(1), *[task(n, ENDLESS) for n in range(2, 9)]]
    with pytest.raises(OutputError, match="it is a folder"):
        made(tasks, Folder(tmp_path))


def test_a_fault_of_the_runtime_ends_the_run(tmp_path: Path) -> None:
    class Broken(FakeBatcher):
        def submit(self, request: kdrt.Request, **options: Any) -> FakeHandle:
            if request["prompt"] == "b":
                raise RuntimeError("a fault")
            return super().submit(request, **options)

    with pytest.raises(RuntimeError, match="a fault"):
        made([task(1), task(2, "b"), task(3)], Folder(tmp_path), Broken())


def test_the_record_is_kept_in_the_calling_thread(tmp_path: Path) -> None:
    threads = set[int]()
    make_many(
        [task(n) for n in range(1, 9)],
        FAKE,
        Folder(tmp_path),
        lambda _: threads.add(threading.get_ident()),
    )
    assert threads == {threading.get_ident()}
