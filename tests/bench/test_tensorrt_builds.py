"""Rows of quantised UNets that are built for the sake of the row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest

import tensorrt_builds
from kdrt.build import engines
from kdrt.build.engines import Tools
from kdrt_engines.tensorrt.build import Follow
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from kdrt_engines.tensorrt.job import BuildJob, Built
from tests.support.engine_bundle import Builder
from tests.support.rtx_machine import install_tensorrt


class Counting(Builder):
    """Counts the operators of each type that it is given to build."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Counter[str]] = []

    def __call__(self, job: BuildJob, follow: Follow = lambda _phase, _memory: None) -> Built:
        graph = onnx.load(job.onnx).graph
        self.operators.append(Counter(node.op_type for node in graph.node))
        return super().__call__(job, follow)


def test_a_quantised_unet_gets_a_row_of_its_own_and_is_gone_afterwards(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")
    builder = Counting()
    monkeypatch.setattr(engines, "TOOLS", Tools(build=builder))
    for format, gpus in (("fp8", "sm89,sm120"), ("int8", "sm86")):
        options = ["--quantized", format, "--gpu", gpus, "-o", str(tmp_path)]
        tensorrt_builds.main([str(demo_bundle), *options])

    rows = json.loads((tmp_path / "tensorrt_builds.json").read_text())["engines"]
    assert [(row["model"], row["format"], row["gpus"]) for row in rows] == [
        ("demo-fp8, ranges not calibrated", "fp8", ["sm89", "sm120"]),
        ("demo-int8, ranges not calibrated", "int8", ["sm86"]),
    ]
    assert (
        "| demo-fp8, ranges not calibrated | unet (fp8) |"
        in (tmp_path / "tensorrt_builds.md").read_text()
    )
    fp8, int8 = builder.operators
    # Queries, keys, probabilities and values of its seven attentions to the prompt: those to the
    # image itself have too few keys in half its side.
    assert fp8["QuantizeLinear"] - int8["QuantizeLinear"] == 4 * 7
    assert int8["DequantizeLinear"] > int8["QuantizeLinear"] > int8["Conv"]
    assert not any(Path(job.onnx).exists() or Path(job.output).exists() for job in builder.jobs)
    assert not (demo_bundle / "engines" / TENSORRT_RTX.name).exists()
