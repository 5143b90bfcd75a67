"""What is logged, and that nothing is printed unless it was asked for."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kdrt
from kdrt.common.log import timed, timed_steps
from tests.support.tiny_model import TinyModel

CPU = torch.device("cpu")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_stages_of_an_image_are_logged(
    sdxl: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kdrt"):
        sdxl.pipeline(["a", "b"], steps=3, seed=1)
    logged = messages(caplog)
    for stage in ("encoded 2 prompt(s)", "sampled 2 image(s), 3 step(s)", "decoded 2 image(s)"):
        assert len([each for each in logged if each.startswith(f"{stage} in ")]) >= 1, logged
    assert all(record.name.startswith("kdrt.") for record in caplog.records)


def test_loading_says_what_was_chosen_and_why(
    demo_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kdrt"), kdrt.load(demo_bundle, engine="onnxruntime"):
        pass
    logged = messages(caplog)
    assert logged[0] == f"opened bundle 'demo' (sdxl) in {demo_bundle}"
    assert "engine onnxruntime, asked for" in logged
    assert any(each.startswith("loaded unet with onnxruntime on cpu in ") for each in logged)
    assert logged[-1] == "closed"


def test_a_stage_that_fails_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kdrt.test")
    with (
        caplog.at_level(logging.INFO, "kdrt"),
        pytest.raises(ValueError, match="broken"),
        timed(logger, "did it", CPU),
    ):
        raise ValueError("broken")
    assert messages(caplog) == []


def test_steps_that_nobody_logs_are_the_same_iterator() -> None:
    logger = logging.getLogger("kdrt.test")
    steps: Iterator[int] = iter(range(3))
    assert timed_steps(logger, "stepped", steps, CPU) is steps


def test_steps_are_logged_after_the_last(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kdrt.test")
    with caplog.at_level(logging.INFO, "kdrt"):
        steps = timed_steps(logger, "stepped", iter(range(3)), CPU)
        assert next(steps) == 0
        assert messages(caplog) == []
        assert list(steps) == [1, 2]
    assert [each.split(" in ")[0] for each in messages(caplog)] == ["stepped"]


def _printed(*options: str, bundle: Path) -> str:
    command = [sys.executable, "-m", "kdrt", *options, "generate", str(bundle), "a circle"]
    command += ["--steps", "1", "--height", "64", "--width", "64", "-o", "circle.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr


def test_verbose_prints_what_is_logged(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, verbose, more = (
        _printed(*options, bundle=demo_bundle) for options in ((), ("-v",), ("-vv",))
    )
    assert "opened bundle" not in plain
    assert "opened bundle 'demo'" in verbose
    assert "binding the UNet for 1 image(s)" not in verbose
    assert "binding the UNet for 1 image(s)" in more
