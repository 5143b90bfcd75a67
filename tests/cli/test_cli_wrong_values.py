"""Any value of any option: it is taken, or refused in one sentence with exit code 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kdrt
from kdrt.cli import app
from kdrt.errors import InvalidRequestError
from kdrt.images.metadata import check_metadata
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.resolve import resolve
from tests.support.command_line import Cli
from tests.support.requests import request_of

RESOLVED = "nothing is wrong with this request"


class Checking:
    """A pipeline that checks a request and refuses it where it would begin to encode."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, **fields: Any) -> None:
        del fields["output_type"]
        request = request_of(fields)
        pipe = self.pipeline
        resolve(request, pipe.bundle.manifest, pipe.engines["unet"].spec, pipe.noise_schedule)
        raise InvalidRequestError(RESOLVED)

    stream = __call__


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return kdrt.load(demo_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> Iterator[Path]:
    """The working folder, in which no image may appear."""
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64)).save(tmp_path / "given.png")
    monkeypatch.setattr("kdrt.cli.loading.PipelineOptions.load", lambda *_: Checking(pipeline))
    yield tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.png"]


def options(command: str) -> list[click.Option]:
    """Those that take a value."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return [p for p in commands[command].params if p.param_type_name == "option" and not p.is_flag]


numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["0", "1", "-1", "1e3", "1_0", "0x10", "٣", "nan", "inf", "-inf", "True"]),
    st.sampled_from(
        ["9" * 30, "9" * 5000, "1e999", "-0.0", "1" + "0" * 23, str(2**63), str(2**64)]
    ),
)
words = st.one_of(
    numbers,
    st.text(max_size=8),
    st.sampled_from(["", " ", "\0", "\udcff", "~nosuchuser/x.png", "/", "/dev/zero"]),
    st.sampled_from(["given.png", "a.png", "x" * 300, "euler", "karras", "none", "sd15", "="]),
    st.lists(numbers, min_size=1, max_size=5).map(",".join),
    st.lists(numbers, min_size=1, max_size=3).map(":".join),
    st.tuples(
        st.sampled_from(["eta", "s_churn", "rho", "sigma_min", "source", "a", ""]),
        numbers | st.sampled_from(["", "heun", "(" * 200, "{[]}", "'a'", "None", "nv"]),
    ).map("=".join),
)  # fmt: skip

quietly = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_refused(outcome: Any) -> None:
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    if outcome.err.startswith("error: "):
        assert outcome.err.count("\n") == 1, outcome.err
    else:
        assert outcome.err.startswith("Usage: ")


@settings(quietly, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([max(o.opts, key=len) for o in options("generate")]), words),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["a red circle", "", "\udcff", "\0", "(" * 50, "-x"]),
)
def test_any_value_of_generate(
    cli: Cli, folder: Path, given_options: list[tuple[str, str]], prompt: str
) -> None:
    arguments = [f"{name}={value}" for name, value in given_options]
    is_refused(cli("generate", "demo", *arguments, "--", prompt))


def test_every_option_of_generate_can_be_right(cli: Cli, folder: Path) -> None:
    right = [
        *("--sampler", "euler_ancestral", "--sampler-option", "eta=0.5", "--schedule", "karras"),
        *("--schedule-option", "rho=5", "--steps", "3", "--seed", str(2**64 - 1), "--count", "2"),
        *("--guidance", "4", "--guidance-rescale", "0.5", "--guidance-interval", "0.5:4"),
        *("--image", "given.png", "--mask", "given.png", "--strength", "0.5", "--clip-skip", "1"),
        *("--freeu", "1.1,1.2,0.9,0.8", "--noise", "a1111", "--noise-option", "source=nv"),
        *("--weighting", "a1111", "--negative", "", "--width", "64", "--height", "64"),
    ]
    assert cli("generate", "demo", "", *right).refusal() == RESOLVED


def test_images_to_come_are_counted_before_their_names_are_made(cli: Cli, folder: Path) -> None:
    refusal = cli("generate", "demo", "a", "--count", 10**23).refusal()
    assert refusal == f"--count must be at most 10000, not {10**23}"


def test_names_that_no_file_can_have(cli: Cli, folder: Path) -> None:
    long = "a" * 250 + ".png"
    assert cli("generate", "demo", "a", "-o", long).refusal() == RESOLVED
    assert "over 255 bytes" in cli("generate", "demo", "a", "-o", long, "--count", 2).refusal()
    assert "no home folder" in cli("generate", "demo", "a", "-o", "~nosuchuser/a.png").refusal()


def test_outputs_that_are_no_files(cli: Cli, folder: Path) -> None:
    os.mkfifo(folder / "fifo.png")
    assert "a device or a pipe" in cli("generate", "demo", "a", "-o", "fifo.png").refusal()
    assert "it is not a file" in cli("generate", "demo", "a", "--image", "fifo.png").refusal()
    (folder / "fifo.png").unlink()


@settings(quietly, max_examples=25)
@given(st.sampled_from(["samplers", "schedules", "info"]), st.lists(words, max_size=3))
def test_any_argument_of_the_lists(
    cli: Cli, folder: Path, command: str, arguments: list[str]
) -> None:
    if command == "schedules" and len(arguments) > 1:
        arguments = [f"--steps={arguments[0]}", f"--plot=no/{arguments[1]}"]
    outcome = cli(command, *arguments)
    if arguments or command == "info":
        is_refused(outcome)


def readable(path: Path) -> bool:
    """Whether a file says how it was made; False where it is refused."""
    with contextlib.suppress(InvalidRequestError):
        return bool(check_metadata(path).settings)
    return False


@pytest.mark.filterwarnings("ignore")
@quietly
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"GIF89a", b"RIFF", b"II*\0"]),
)
def test_metadata_of_anything(folder: Path, content: bytes, start: bytes) -> None:
    path = folder / "any.png"
    path.write_bytes(start + content)
    assert not readable(path)
    path.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@quietly
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3), st.integers(0, 99)
)
def test_metadata_of_damaged_images(
    folder: Path, kind: str, changes: list[tuple[int, int]], lost: int
) -> None:
    path = folder / "any"
    exif = Image.Exif()
    exif[0x0131] = "a program"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a\nSteps: 1, Seed: 2".encode("utf-16-be")
    Image.new("RGB", (16, 16), "red").save(path, kind, exif=exif, comment=b"a\nSteps: 1")
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: len(content) - lost])
    assert readable(path) or changes or lost
    path.unlink()


def test_info_does_not_steer_the_terminal(cli: Cli, folder: Path) -> None:
    path = kdrt.save_image(Image.new("L", (8, 8)), folder / "any.png", "\x1b[2J\x9b\nSteps: 1")
    shown = cli("info", path)
    assert shown.code == 0
    assert "\x1b" not in shown.out
    assert "\x9b" not in shown.out
    path.unlink()
