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
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{RUN}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "KDRT_HOME": str(home)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return {*done.stderr.split()}


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
