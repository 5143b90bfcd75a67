"""``kdrt generate --from`` with the demo model: a pipeline's images, and runs that are ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdrt
from kdrt.cli.run_record import NAME
from kdrt.common.atomic_io import UNFINISHED
from tests.support.command_line import Cli


def requests(count: int) -> list[dict[str, Any]]:
    """Such as differ in all that images in flight may differ in."""
    samplers = ["euler", "dpmpp_2m", "dpmpp_2m_sde", "heun", "euler_ancestral"]
    return [
        {
            "prompt": f"a red circle, {number}",
            "seed": number,
            "sampler": samplers[number % len(samplers)],
            "steps": 2 + number % 4,
            "guidance_scale": 1 + number % 3,
        }
        for number in range(count)
    ]


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))


def start(folder: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kdrt", "generate", "demo", "--from", "requests.jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "KDRT_HOME": str(home),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )


def recorded(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / NAME
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def images(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out").glob("*.png")}


def test_images_are_those_of_a_pipeline(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = requests(8)
    write(tmp_path, lines)
    outcome = cli("generate", demo, "--from", "requests.jsonl", "--json", "--no-progress")
    assert outcome.code == 0, outcome.err
    entries = {each["line"]: each for each in map(json.loads, outcome.out.splitlines())}
    assert [entries[number]["seed"] for number in range(1, 9)] == list(range(8))
    pipe = kdrt.load(demo, threads=1)
    for number, request in enumerate(lines, start=1):
        path = tmp_path / "out" / entries[number]["path"]
        alone = np.asarray(pipe(**request).images[0], np.int16)
        with Image.open(path) as image:
            assert np.abs(np.asarray(image, np.int16) - alone).max() <= 1
        assert kdrt.request_from(path)["prompt"] == request["prompt"]


def test_what_is_done_stays_when_a_run_is_interrupted(demo_home: Path, tmp_path: Path) -> None:
    write(tmp_path, [{**each, "steps": 40} for each in requests(60)])
    process = start(tmp_path, demo_home)
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    # Several lines come at once, of which communicate() would lose those that are buffered.
    lines += process.stdout.readlines()
    err = process.stderr.read()
    assert process.wait() == 130
    assert err.splitlines()[-2:] == [
        f"{len(lines)} of 60 images are saved; the same command makes the others.",
        "interrupted",
    ]
    assert 2 <= len(lines) < 60
    assert {entry["path"] for entry in recorded(tmp_path)} == images(tmp_path)
    assert len(images(tmp_path)) == len(lines)


@pytest.mark.parametrize("times", [pytest.param(2), pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on(
    cli: Cli,
    demo: str,
    demo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    rng = random.Random(times)
    write(tmp_path, requests(20 * times))
    for _ in range(times):
        before = len(recorded(tmp_path))
        process = start(tmp_path, demo_home)
        while len(recorded(tmp_path)) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
    saved = {path: (tmp_path / "out" / path).read_bytes() for path in images(tmp_path)}
    monkeypatch.chdir(tmp_path)
    outcome = cli("generate", demo, "--from", "requests.jsonl", "--no-progress")
    assert outcome.code == 0, outcome.err
    newest = {entry["line"]: entry for entry in recorded(tmp_path)}
    assert newest.keys() == set(range(1, 20 * times + 1))
    for number, entry in newest.items():
        path = tmp_path / "out" / entry["path"]
        assert kdrt.request_from(path)["prompt"] == f"a red circle, {number - 1}"
        with Image.open(path) as image:
            image.load()
    for path, content in saved.items():
        assert (tmp_path / "out" / path).read_bytes() == content
    assert not list((tmp_path / "out").glob(f"{UNFINISHED}*"))
    again = cli("generate", demo, "--from", "requests.jsonl", "--no-progress")
    assert (again.code, again.out) == (0, "")
