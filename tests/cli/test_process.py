"""The command as a process: its standard streams, signals in the first moments, and bugs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdrt import cli as command_line
from tests.support.command_line import Cli

KDRT = (sys.executable, "-m", "kdrt")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(
    *arguments: str, redirect: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``kdrt ARGUMENTS`` in a shell, with a redirection."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", *KDRT, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("arguments", [("samplers",), ("samplers", "--json"), ("--version",)])
def test_a_full_standard_output_is_one_sentence(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, redirect="> /dev/full")
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_full_standard_error_keeps_the_exit_code() -> None:
    assert run("inspect", "nothing", redirect="2> /dev/full").returncode == 2


def test_closed_streams_are_no_fault() -> None:
    assert run("samplers", redirect="<&- >&- 2>&-").returncode == 0
    done = run("inspect", "nothing", redirect=">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no bundle")


def test_a_closed_stream_s_number_is_not_given_to_a_file(tmp_path: Path) -> None:
    """Else what is printed would be written into the file that was opened next."""
    code = (
        "import sys; from kdrt.__main__ import _open_closed_streams as f; f(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); print('hello', flush=True); "
        "sys.exit(file.fileno() < 3)"
    )
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code])
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_reader_that_has_gone_ends_it_silently() -> None:
    done = run("samplers", redirect="| head -1")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_an_ascii_terminal_shows_what_it_can(environment: dict[str, str]) -> None:
    done = run("inspect", "né", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no bundle 'n")
    for command in (["samplers"], ["--help"]):
        done = run(*command, **environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_json_is_json_on_an_ascii_terminal(tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", "café ✓\nSteps: 4, Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "cafe.png", pnginfo=info)
    done = run("info", str(tmp_path / "cafe.png"), "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["Prompt"] == "café ✓"
    assert done.stdout.isascii()


def test_control_c_while_commands_are_imported_says_interrupted(tmp_path: Path) -> None:
    """The import that is interrupted is typer's, in the place of which stands one that waits."""
    (tmp_path / "typer.py").write_text(
        "print('importing', flush=True)\nimport time; time.sleep(60)"
    )
    process = subprocess.Popen(
        [*KDRT, "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 130


def test_control_c_that_a_library_makes_something_else_of(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt as interrupt:
            raise ImportError("C extension failed") from interrupt

    monkeypatch.setattr("kdrt.backends.doctor.examine", importing)
    monkeypatch.setattr(command_line, "_interrupted", False)
    before = signal.signal(signal.SIGINT, command_line.interrupt)
    try:
        outcome = cli("doctor")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


class Panic(BaseException):
    """As PyO3's PanicException, which is no Exception either."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, RecursionError, Panic])
def test_a_bug_is_one_sentence_and_a_file(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    def broken() -> None:
        raise kind("of a test")

    monkeypatch.setattr("kdrt.backends.doctor.examine", broken)
    outcome = cli("doctor")
    assert outcome.code == command_line.INTERNAL_ERROR
    assert outcome.err.count("\n") == 1
    assert f"{kind.__name__}: of a test" in outcome.err
    (saved,) = (home / "errors").iterdir()
    assert str(saved) in outcome.err
    text = saved.read_text()
    assert "Traceback (most recent call last)" in text
    assert "in broken" in text


def test_a_bug_is_told_where_nothing_can_be_written(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kdrt.backends.doctor.examine", broken)
    monkeypatch.setattr("kdrt.cli.crash._folders", lambda: (Path("/dev/null/home"),))
    outcome = cli("doctor")
    assert outcome.code == command_line.INTERNAL_ERROR
    assert "the details cannot be saved" in outcome.err


def test_too_little_memory_is_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def huge() -> None:
        raise MemoryError

    monkeypatch.setattr("kdrt.backends.doctor.examine", huge)
    assert "not enough memory" in cli("doctor").refusal()


def test_what_is_done_stays_when_a_series_is_interrupted(demo_home: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*KDRT, "generate", "demo", "a star", "--count", "500", "--steps", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "KDRT_HOME": str(demo_home),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    lines += out.splitlines()
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [f"{len(lines)} of 500 images are saved.", "interrupted"]
    saved = [line.partition("\t")[0] for line in lines]
    assert {path.name for path in tmp_path.iterdir()} == set(saved)
    assert 2 <= len(saved) < 500


def test_a_terminal_is_told_of_memory_and_progress(demo_home: Path, tmp_path: Path) -> None:
    """Standard error is a terminal, standard output is not."""
    terminal, theirs = os.openpty()
    process = subprocess.Popen(
        [*KDRT, "generate", "demo", "a (red:1.3) star", "--count", "3", "--steps", "2"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "KDRT_HOME": str(demo_home),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TERM": "xterm",
        },
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    out = process.communicate()[0]
    assert process.returncode == 0
    assert [line.partition("\t")[0] for line in out.splitlines()] == [
        *("out-1.png", "out-2.png", "out-3.png")
    ]
    for words in ("memory: weights", "free on cpu", "hint:", "Image 3 of 3", "step 2 of 2"):
        assert words in shown.decode()
