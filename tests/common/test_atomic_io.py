"""Files and folders take their place whole, and what was there is not lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from kdrt.cli.latents_file import save_latents
from kdrt.common import atomic_io
from kdrt.common.atomic_io import new_file, new_folder
from kdrt.errors import OutputError, OutputExistsError


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
    latents = torch.zeros(1, 4, 16, 16)
    with pytest.raises(OutputError, match=r"cannot write .*latents.safetensors: .*too large"):
        save_latents(latents, tmp_path / "latents.safetensors")
    assert not list(tmp_path.iterdir())


def leftover(folder: Path, *, pid: int, started: int, host: str | None = None) -> Path:
    """What ``new_folder`` would have been at work on, for a process."""
    name = f"{atomic_io.UNFINISHED}{host or atomic_io._host()}-{pid}-{started}-{'0' * 8}"
    fill(folder / name / "new", "half done")
    return folder / name


@pytest.fixture
def dead() -> tuple[int, int]:
    """The id and the start of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(psutil.Process(process.pid).create_time())
    process.communicate()
    return process.pid, started


def test_what_dead_processes_left_is_removed_and_said(
    tmp_path: Path, dead: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    me = psutil.Process()
    own = leftover(tmp_path, pid=me.pid, started=int(me.create_time()))
    theirs = leftover(tmp_path, pid=dead[0], started=dead[1])
    reused = leftover(tmp_path, pid=me.pid, started=int(me.create_time()) - 10)
    elsewhere = leftover(tmp_path, pid=dead[0], started=dead[1], host="0123abcd")
    (tmp_path / f"{atomic_io.UNFINISHED}notes").touch()
    with new_folder(tmp_path / "target") as partial:
        fill(partial, "new")
    assert own.exists(), "its process is alive"
    assert elsewhere.exists(), "nobody here can know"
    assert (tmp_path / f"{atomic_io.UNFINISHED}notes").exists(), "no name that kdrt gives"
    assert not theirs.exists()
    assert not reused.exists(), "another process has the number now"
    assert f"removed {theirs}, left by a killed process" in caplog.text


def test_what_a_killed_process_moved_away_comes_back(
    tmp_path: Path, dead: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed between the two renames: the old folder is nowhere but in what it left."""
    left = leftover(tmp_path, pid=dead[0], started=dead[1])
    fill(left / "old" / "target", "old")
    atomic_io.clear_leftovers(tmp_path)
    assert text(tmp_path / "target") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert f"put back {tmp_path / 'target'}" in caplog.text


def test_what_a_stranger_says_was_moved_away_is_not_fetched_from_elsewhere(
    tmp_path: Path, dead: tuple[int, int]
) -> None:
    """An archive can bring a folder of such a name, and in it a link."""
    left = leftover(tmp_path / "unpacked", pid=dead[0], started=dead[1])
    fill(tmp_path / "mine", "mine")
    (left / "old").symlink_to(tmp_path / "mine")
    atomic_io.clear_leftovers(tmp_path / "unpacked")
    assert text(tmp_path / "mine") == "mine"
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_file_that_a_killed_process_left_is_removed(
    tmp_path: Path, dead: tuple[int, int]
) -> None:
    name = f"{atomic_io.UNFINISHED}{atomic_io._host()}-{dead[0]}-{dead[1]}-{'0' * 8}"
    (tmp_path / name).touch()
    (tmp_path / "victim").touch()
    link = tmp_path / f"{name[:-8]}{'1' * 8}"
    link.symlink_to(tmp_path / "victim")
    with new_file(tmp_path / "image.png") as partial:
        partial.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["image.png", "victim", link.name])


@pytest.mark.parametrize("write", ["file", "folder"])
def test_links_stay_and_what_they_point_to_is_replaced(tmp_path: Path, write: str) -> None:
    (tmp_path / "other disk").mkdir()
    place, link = tmp_path / "other disk" / "place", tmp_path / "link"
    link.symlink_to(place)
    for content in ("first", "second"):
        if write == "file":
            with new_file(link) as file:
                file.write_text(content)
            assert place.read_text() == content
        else:
            with new_folder(link, nothing) as partial:
                fill(partial, content)
            assert text(place) == content
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "other disk"]
    assert [p.name for p in (tmp_path / "other disk").iterdir()] == ["place"]


def test_folders_that_hold_anything_are_not_replaced_unless_that_is_known(tmp_path: Path) -> None:
    fill(tmp_path / "target", "mine")
    (tmp_path / "target" / "link").symlink_to(tmp_path)

    def known(folder: Path) -> str | None:
        return atomic_io.other_files(folder, {"inner/file", "link"}.__contains__)

    for foreign, held in ((None, "inner/file|link"), (known, "link")):
        with (
            pytest.raises(OutputError, match=f"target holds {held}, which kdrt did not write"),
            new_folder(tmp_path / "target", foreign),
        ):
            pytest.fail("the work has begun")
    (tmp_path / "target" / "link").unlink()
    with new_folder(tmp_path / "target", known) as partial:
        fill(partial, "new")
    assert text(tmp_path / "target") == "new"


def test_what_came_during_the_work_is_not_replaced_either(tmp_path: Path) -> None:
    def work() -> None:
        with new_folder(tmp_path / "target") as partial:
            fill(partial, "new")
            fill(tmp_path / "target", "mine")

    with pytest.raises(OutputError, match="target holds inner/file, which kdrt did not write"):
        work()
    assert text(tmp_path / "target") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "it is a folder"),
        (os.mkfifo, "it is a device or a pipe"),
        (lambda path: path.symlink_to("/dev/null"), "it is a device or a pipe"),
        (lambda path: path.symlink_to(path), "cannot write"),
    ],
    ids=["folder", "pipe", "device", "loop"],
)
def test_what_is_no_file_is_refused_before_the_work(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "image.png")
    with pytest.raises(OutputError, match=words), new_file(tmp_path / "image.png"):
        pytest.fail("the work has begun")


@pytest.mark.parametrize("open_new", [new_file, new_folder])
def test_no_file_system_takes_these_names(
    tmp_path: Path, open_new: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(OutputError, match="cannot write"), open_new(tmp_path / name):
            pytest.fail("the work has begun")


def in_a_mount(tmp_path: Path, mounted: str, options: str, statement: str) -> str:
    """What a program prints in which something is mounted over a folder."""
    folder = tmp_path / mounted
    folder.mkdir(parents=True)
    script = (
        "from pathlib import Path\n"
        "from kdrt.errors import OutputError\n"
        "from kdrt.common.atomic_io import new_file, new_folder\n"
        f"try:\n    with {statement}:\n        print('begun')\n"
        "except OutputError as error: print(error)"
    )
    mount = f"mount -t tmpfs {options} tmpfs '{folder}' && exec {sys.executable} -c \"$0\""
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", mount, script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    return done.stdout.strip()


def test_mount_points_are_refused_before_the_work(tmp_path: Path) -> None:
    said = in_a_mount(tmp_path, "out", "", f"new_folder(Path('{tmp_path}/out'))")
    assert said.endswith("something is mounted there; choose a place inside of it")


def test_what_is_mounted_inside_of_a_folder_is_not_replaced_with_it(tmp_path: Path) -> None:
    statement = f"new_folder(Path('{tmp_path}/out'), lambda _: None)"
    said = in_a_mount(tmp_path, "out/engines", "", statement)
    assert said.endswith("something is mounted there; choose a place inside of it")


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_read_only_places_are_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    said = in_a_mount(tmp_path, "out", "-o ro", f"{kind}(Path('{tmp_path}/out/deep/x'))")
    assert said.endswith("deep/x: Read-only file system")


KILLED = """
import sys, time
from contextlib import suppress
from pathlib import Path
from kdrt.common.atomic_io import new_file, new_folder
target = Path(sys.argv[1])
print("ready", flush=True)
for number in range(1_000_000):
    with new_folder(target / "folder", lambda _: None) as partial:
        (partial / "a").write_text(str(number))
        (partial / "b").write_text(str(number))
    with new_file(target / "file") as partial:
        partial.write_text(str(number) * 1000)
"""


@pytest.mark.parametrize(
    "times", [pytest.param(12, id="few"), pytest.param(300, id="many", marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_nothing_is_lost_and_the_next_run_cleans(
    tmp_path: Path, times: int
) -> None:
    rng = random.Random(0)
    with new_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("0")
        (partial / "b").write_text("0")
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        atomic_io.clear_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"folder", "file"}
        assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "folder" / "b").read_text()
        file = tmp_path / "file"
        assert not file.exists() or len(file.read_text()) % 1000 == 0


def test_a_file_that_is_there_is_kept_if_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for content in ("first", "second"):
        with suppress(OutputExistsError), new_file(target, overwrite=False) as partial:
            partial.write_text(content)
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_of_two_who_write_to_one_place_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "file"
    slow, fast = (new_file(target, overwrite=False) for _ in range(2))
    slow.__enter__().write_text("slow")
    fast.__enter__().write_text("fast")
    fast.__exit__(None, None, None)
    with pytest.raises(OutputExistsError):
        slow.__exit__(None, None, None)
    assert target.read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
