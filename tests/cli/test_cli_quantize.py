"""``kdrt quantize``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Cli
from tests.support.tiny_bundles import TinyModel as TinyBundle

SMALL = ("--at", "32x32", "--images", "1")


def test_a_bundle_becomes_another_one(
    cli: Cli, tiny_models: Callable[[str], TinyBundle], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torchmetrics")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n# not this one\na blue star\n")
    made = tmp_path / "small-int8"
    outcome = cli(
        *("quantize", tiny_models("sdxl").bundle, "--format", "int8"),
        *("--calibration", prompts, *SMALL, "-o", made),
    )
    assert outcome.code == 0, outcome.err
    assert "2 prompts, 14 evaluations" in outcome.out
    assert "of an evaluation, over all steps; chosen for 0.03" in outcome.out
    assert str(made) in outcome.out.splitlines()[-1]
    shown = cli("inspect", made).out
    assert "quantised, see below" in shown
    assert "2 prompts, 14 evaluations" in shown
    compared = cli("compare", tiny_models("sdxl").bundle, made, "--random", "--layers")
    assert compared.code == 0, compared.err
    assert "layer" in compared.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--format", "fp9"), "fp8"),
        (("--format", "fp8", "--calibration", "0"), "not 0; for more give a file"),
        (("--format", "fp8", "--calibration", "nowhere.txt"), "nowhere.txt"),
        (("--format", "FP8", "--calibration", "-3"), "not -3; for more give a file"),
        (("--format", "fp8", "--calibration", "1.5"), "takes a whole number or a file"),
        (("--format", "fp8", "--max-error", "nan"), "(--max-error) must be between 0.0001 and 0.5"),
        (("--format", "fp8", "--at", "64"), "'64' is no size"),
        (("--format", "fp8", "--images", "101"), "images must be between 1 and 100, not 101"),
        (("--format", "fp8", "--engine", "openvino"), "one of onnxruntime, onnxruntime-cuda"),
        (("--format", "fp8", "--name", "demo"), "not quantised in place"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    cli: Cli, demo: str, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in cli("quantize", demo, *arguments).refusal()


def test_an_empty_calibration_says_so(cli: Cli, demo: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# nothing\n")
    refusal = cli("quantize", demo, "--format", "fp8", "--calibration", empty).refusal()
    assert "empty.txt" in refusal
    assert "no prompt" in refusal


def test_a_missing_package_is_named(cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    refusal = cli("quantize", demo, "--format", "fp8").refusal()
    assert "'torchmetrics', which is not installed: pip install 'kdrt[quantize]'" in refusal
