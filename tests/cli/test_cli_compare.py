"""``kdrt compare``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.command_line import Cli
from tests.support.planted import OVERFLOWING, planted_bundle

pytest.importorskip("polygraphy")


@pytest.fixture(scope="module")
def planted(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles, in float32 and float16, whose VAE overflows in the latter."""
    folder = tmp_path_factory.mktemp("planted")
    for name, dtype in (("whole", torch.float32), ("half", torch.float16)):
        planted_bundle(demo_bundle, folder / name, dtype)
    return folder / "whole", folder / "half"


def test_a_planted_overflow_is_named(cli: Cli, planted: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    of_vae = ("--component", "vae_decoder", "--random", "--at", "48x32", "--layers")
    outcome = cli("compare", *planted, *of_vae, "-o", folder)
    assert outcome.code == 0, outcome.err
    first = f"{OVERFLOWING}/Conv"
    (marked,) = [line for line in outcome.out.splitlines() if "<- first" in line]
    assert first in marked
    assert f"{first} is the first layer of b that is not finite" in outcome.out
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert next(row["layer"] for row in rows if row["error"] == "inf") == first
    assert rows[-1]["tensor"] == "image"
    with Image.open(folder / "layers.png") as drawn:
        assert drawn.format == "PNG"
        assert len(drawn.convert("RGB").getcolors(2**20) or []) > 10  # more than an empty frame


def test_two_graphs_on_the_inputs_of_an_image(cli: Cli, demo: str) -> None:
    engines = ("--engines", "onnxruntime,onnxruntime:fused")
    outcome = cli("compare", demo, *engines, "--layers", "--at", "32x48")
    assert outcome.code == 0, outcome.err
    assert "both agree: the largest error is" in outcome.out
    assert "layers of a have no equal in b" in outcome.out
    assert "conv_out/Conv" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "both sides are the same"),
        (("--engines", "onnxruntime,torch"), "torch does not show its layers"),
        (("--engines", "onnxruntime,openvino:bf16"), "openvino does not show its layers"),
        (("--engines", "onnxruntime,nonsense"), "unknown engine 'nonsense'"),
        (("--engines", "onnxruntime:cpu,onnxruntime"), "unknown graph 'cpu'"),
        (("--engines", "tensorrt:fused"), "knows standard operators only"),
        (("--engines", "onnxruntime,tensorrt,onnxruntime"), "two engines can be compared, not 3"),
        (("--engines", "tensorrt,tensorrt-rtx"), "one flavour of TensorRT in a process"),
        (("--component", "nonsense"), "has no component 'nonsense'; it has text_encoder,"),
        (("--at", "64"), "'64' is no size"),
    ],
)
def test_what_cannot_be_compared(
    cli: Cli, demo: str, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in cli("compare", demo, *arguments).refusal()


FUSED = ("--engines", "onnxruntime,onnxruntime:fused")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--at", "63x64"), "height must be a multiple of"),
        (("--random", "--at", "63x64"), "height and width must be multiples of"),
        (("--component", "vae_encoder"), "takes no part in an image that is made from text"),
    ],
)
def test_inputs_that_there_cannot_be(
    cli: Cli, demo: str, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in cli("compare", demo, *FUSED, *arguments).refusal()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdrt_export.compare.comparison.compare", None)
    (tmp_path / "layers.csv").mkdir()
    assert "it is a folder" in cli("compare", demo, *FUSED, "-o", tmp_path).refusal()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs matplotlib" in cli("compare", demo, *FUSED, "-o", tmp_path / "new").refusal()
    assert not (tmp_path / "new").exists()


def test_an_engine_that_cannot_run_here(
    cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdrt_engines.registry.cuda_available", lambda: False)
    refusal = cli("compare", demo, "--engines", "onnxruntime,onnxruntime-cuda").refusal()
    assert refusal == "onnxruntime-cuda cannot run here: no CUDA device"


def test_without_what_exports_need(cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.logger", None)
    refusal = cli("compare", demo, *FUSED, "--component", "vae_decoder", "--random").refusal()
    assert "needs the package 'polygraphy'" in refusal
