"""Commands that are killed: what was before is there after, and the next run works and cleans.

Most moments are for the slow suite, since every command begins with seconds of imports; what all of
them write with is killed more often in `tests/common/test_atomic_io.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdrt.backends.ort_cache import keep_optimized, optimized
from kdrt.bundle import Bundle, new_bundle
from kdrt.cli import run
from kdrt.common.atomic_io import UNFINISHED
from kdrt_export.report import Silent

FEW_AND_MANY = [pytest.param(1, id="few"), pytest.param(40, id="many", marks=pytest.mark.slow)]


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kdrt", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def kill(process: subprocess.Popen[bytes], begun: Callable[[], object], moment: float) -> None:
    """End a process with SIGKILL, so many seconds after its work has begun."""
    while not begun() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(moment)
    process.kill()
    process.wait()


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{UNFINISHED}*"))


@pytest.mark.slow
def test_exports(demo_bundle: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    place = tmp_path / "demo"
    shutil.copytree(demo_bundle, place, copy_function=os.link)
    files = Bundle.open(place).manifest.files
    for _ in range(20):
        process = start("export", "demo", "-o", place)
        kill(process, lambda: unfinished(tmp_path), rng.uniform(0, 12))
        assert Bundle.open(place).manifest.files.keys() == files.keys()
    with new_bundle(place) as partial:
        assert unfinished(tmp_path) == [partial.parent]
        (partial / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("times", FEW_AND_MANY)
def test_builds(demo_bundle: Path, tmp_path: Path, times: int) -> None:
    rng = random.Random(2)
    shutil.copytree(demo_bundle, tmp_path / "demo", copy_function=os.link)
    bundle = Bundle.open(tmp_path / "demo")
    shutil.rmtree(bundle.path / "engines")
    for _ in range(times):
        process = start("build", bundle.path, "--engine", "onnxruntime", "--force")
        kill(process, lambda: unfinished(bundle.path), rng.uniform(0, 0.5))
    keep_optimized(bundle, bundle.manifest.components, Silent())
    assert not unfinished(bundle.path)
    assert all(optimized(bundle, name) for name in bundle.manifest.components)


@pytest.mark.parametrize("times", FEW_AND_MANY)
def test_images(demo_bundle: Path, tmp_path: Path, times: int) -> None:
    rng = random.Random(3)
    image = tmp_path / "star.png"
    options = ("--steps", "1", "--seed", "1", "--overwrite", "-o", str(image))
    command = ["generate", str(demo_bundle), "a star", *options]
    assert run(command) == 0
    before = image.read_bytes()
    for _ in range(times):
        kill(start(*command), lambda: True, rng.uniform(0, 4))
        assert image.read_bytes() == before
    assert run(command) == 0
    assert not unfinished(tmp_path)
    with Image.open(image) as whole:
        whole.load()
