"""A network of two layers as an ONNX file, and as an engine of the recorder that does the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import external_data_helper, helper, numpy_helper
from torch import Tensor

from kdrt_engines import EngineSpec, TensorSpec
from kdrt_engines.profiles import Profile, Range
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.scratch import ScratchMemory
from tests.support import trt_recorder

SPEC = EngineSpec((TensorSpec("x", "float32", ("B", 5)),), (TensorSpec("y", "float32", ("B", 3)),))
PROFILES = (Profile("few", {"B": Range(2, 2, 4)}), Profile("many", {"B": Range(1, 8, 8)}))
FIRST, BIAS, SECOND = "first.weight", "first.bias", "second.weight"
OPEN = (FIRST, SECOND)


def base() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {FIRST: (4, 5), BIAS: (4,), SECOND: (3, 4)}
    return {name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def computed(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    hidden = torch.tanh(inputs["x"] @ weights[FIRST].T + weights[BIAS])
    return {"y": hidden @ weights[SECOND].T}


def network(folder: Path, added: dict[str, Tensor] | None = None) -> Path:
    """``computed`` as an ONNX file with its weights beside it; the weights ``added`` are added to
    the result."""
    added = added or {}
    sums = ["sum", *(f"and {name}" for name in added)]
    nodes = [
        helper.make_node("Gemm", ["x", FIRST, BIAS], ["a"], transB=1),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", SECOND], ["sum"], transB=1),
        *(
            helper.make_node("Add", [before, name], [after])
            for name, (before, after) in zip(added, pairwise(sums), strict=True)
        ),
        helper.make_node("Identity", [sums[-1]], ["y"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", width])
        for name, width in (("x", 5), ("y", 3))
    ]
    stored = [
        numpy_helper.from_array(value.numpy(), name) for name, value in (base() | added).items()
    ]
    graph = helper.make_graph(nodes, "two layers", sides[:1], sides[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def engine_file(**options: Any) -> trt_recorder.EngineFile:
    defaults: dict[str, Any] = {"compute": computed, "weights": base(), "refittable": OPEN}
    return trt_recorder.EngineFile(
        [
            trt_recorder.Tensor("x", True, "FLOAT", (-1, 5)),
            trt_recorder.Tensor("y", False, "FLOAT", (-1, 3)),
        ],
        [{"x": (((r := p.ranges["B"]).min, 5), (r.opt, 5), (r.max, 5))} for p in PROFILES],
        **defaults | options,
    )


def load(
    network: Path, file: trt_recorder.EngineFile, *, waits: bool = True, **options: Any
) -> tuple[TensorRTEngine, trt_recorder.Calls]:
    trt = trt_recorder.module({b"engine": file}, rtx=True)
    gpu = trt_recorder.RecordedGpu(trt.calls, waits=waits)
    engine = TensorRTEngine(
        trt,
        b"engine",
        SPEC,
        profiles=PROFILES,
        scratch=ScratchMemory(gpu.device),
        gpu=gpu,
        network=network,
        **options,
    )
    return engine, trt.calls


def held(engine: TensorRTEngine) -> dict[str, Tensor]:
    """The weights in the engine."""
    weights: dict[str, Tensor] = engine.cuda_engine.weights
    return weights


def holds(engine: TensorRTEngine, weights: dict[str, Tensor]) -> bool:
    """Whether the engine has its base weights, except for these, to the bit."""
    wanted = base() | weights
    return all(torch.equal(value, wanted[name]) for name, value in held(engine).items())
