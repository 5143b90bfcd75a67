"""Small graphs for one pass at a time, and ONNX Runtime to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.tape import Tape as Tape

from kdrt_engines.comparison import relative_error

SAME = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
"""The attributes of a convolution of 3 x 3 whose results are as many as it sees."""

Values = Mapping[str, ir.Value]
Build = Callable[[Tape, Values], ir.Value | Sequence[ir.Value]]


def graph_of(
    build: Build, inputs: Sequence[str], weights: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    """What ``build`` records with float32 inputs of any shape and these initialisers."""
    values = {name: ir.val(name, ir.DataType.FLOAT) for name in inputs}
    recorder = Tape()
    stored = {
        name: recorder.initializer(ir.tensor(array, name=name), name)
        for name, array in (weights or {}).items()
    }
    made = build(recorder, values | stored)
    outputs = [made] if isinstance(made, ir.Value) else list(made)
    for index, output in enumerate(outputs):
        output.name, output.dtype = f"y{index}", ir.DataType.FLOAT
    graph = ir.Graph(
        list(values.values()),
        outputs,
        nodes=recorder.nodes,
        initializers=list(stored.values()),
        opset_imports={"": 20, "com.microsoft": 1},
        name="small",
    )
    return ir.Model(graph, ir_version=9)


def weights_of(
    channels: int, out: int, *, bias: bool = True, kernel: Sequence[int] = (3, 3)
) -> dict[str, np.ndarray]:
    """Random filters ``w`` of a convolution, which keep the scale of what they see, and its bias
    ``b``."""
    draw = np.random.default_rng(channels + out)
    filters = draw.standard_normal((out, channels, *kernel)) / np.sqrt(9 * channels)
    weights = {"w": filters.astype(np.float32)}
    if bias:
        weights["b"] = draw.standard_normal(out).astype(np.float32)
    return weights


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The relative error of an output."""
    return relative_error(torch.from_numpy(found), torch.from_numpy(expected))


def kinds(model: ir.Model) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in model.graph]


def run(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph, as it stands: not optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))
