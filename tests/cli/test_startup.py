"""Commands that only tell something start at once: they do not load what computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

HEAVY = {"torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "diffusers", "kdrt_export"}

RUN = """
import sys
from kdrt.cli import run
code = run(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def loaded_by(*arguments: str, home: Path) -> set[str]:
    """The packages that a command had loaded at its end."""
    done = run(*arguments, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return {*done.stderr.split()}


def refused_by(*arguments: str, home: Path) -> tuple[set[str], str]:
    """The packages that a refused command had loaded, and what it said."""
    done = run(*arguments, home=home)
    assert done.returncode == 2, done.stderr
    *said, modules = done.stderr.splitlines()
    return {*modules.split()}, " ".join(said)


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process that tells at its end what it had loaded."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{RUN}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "KDRT_HOME": str(home)},
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("generate", "--help"),
        ("export", "--help"),
        ("samplers",),
        ("samplers", "--json"),
        ("schedules",),
        ("inspect", "demo"),
        ("list",),
        ("doctor",),
        ("doctor", "--json"),
    ],
    ids=" ".join,
)
def test_nothing_that_computes_is_loaded(demo_home: Path, command: tuple[str, ...]) -> None:
    loaded = loaded_by(*command, home=demo_home)
    assert {"kdrt", "typer"} <= loaded
    assert not loaded & HEAVY
    assert "kdrt_bench" not in loaded


def test_an_image_is_read_without_what_makes_images(home: Path, tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a red circle\nSteps: 20, Sampler: Euler, Seed: 7")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    assert not loaded_by("info", str(tmp_path / "a.png"), home=home) & HEAVY


def test_a_wrong_lora_is_refused_before_the_exporter_is_loaded(home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    loaded, said = refused_by("export", "demo", "--lora", f"{tmp_path / 'cat.png'}:0.5", home=home)
    assert "error: cat.png is an image; a .safetensors file is needed" in said
    assert not loaded & {"diffusers", "transformers", "kdrt_export"}


def test_a_wrong_line_of_requests_is_refused_before_what_makes_images(
    home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "stepz": 5}\n')
    loaded, said = refused_by("generate", "demo", "--from", str(file), home=home)
    assert f"error: line 2 of {file}: a request has no field 'stepz'" in said
    assert not loaded & HEAVY
