"""Real builds with TensorRT-RTX of a quantised block: every layer of it runs in 8 bits there.

A few seconds of CPU time each. Nothing here runs an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from kdrt_engines.errors import EngineError
from kdrt_engines.tensorrt.build import build_engine
from kdrt_engines.tensorrt.job import BuildJob
from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.layers import activations_of, quantizable_layers
from kdrt_export.quantize.qdq import quantize_graph
from kdrt_export.quantize.weights import quantize_weight

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'kdrt[tensorrt-rtx]'"
)

_WEIGHTS = {"conv.weight": (64, 64, 3, 3), "to_qkv.weight": (192, 64), "to_out.weight": (64, 64)}
_CONSTANTS = {
    "sizes": [64, 64, 64],
    "flat": [0, 64, -1],
    "heads": [0, -1, 2, 32],
    "joined": [0, -1, 64],
}


def block() -> onnx.ModelProto:
    """A convolution and a self-attention of two heads, in float16 at any size."""
    nodes: list[tuple[str, str, list[str], list[str], dict[str, Any]]] = [
        ("Conv", "/conv/Conv", ["x", "conv.weight", "bias"], ["maps"], {"pads": [1, 1, 1, 1]}),
        ("Reshape", "/Reshape", ["maps", "flat"], ["rows"], {}),
        ("Transpose", "/Transpose", ["rows"], ["tokens"], {"perm": [0, 2, 1]}),
        ("Transpose", "/to_qkv/Transpose", ["to_qkv.weight"], ["in"], {"perm": [1, 0]}),
        ("MatMul", "/to_qkv/MatMul", ["tokens", "in"], ["qkv"], {}),
        ("Split", "/attn/Split", ["qkv", "sizes"], ["q", "k", "v"], {"axis": -1}),
    ]
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        place = f"/attn/Attention/{name}"
        nodes += [
            ("Reshape", f"{place}/Reshape", [name, "heads"], [f"{name}_heads"], {}),
            ("Transpose", f"{place}/T", [f"{name}_heads"], [f"{name}_turned"], {"perm": perm}),
        ]
    nodes += [
        ("MatMul", "/attn/Attention/MatMul", ["q_turned", "k_turned"], ["scores"], {}),
        ("Softmax", "/attn/Attention/Softmax", ["scores"], ["p"], {"axis": -1}),
        ("MatMul", "/attn/Attention/MatMul_1", ["p", "v_turned"], ["seen"], {}),
        ("Transpose", "/attn/Attention/Back", ["seen"], ["back"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", "/attn/Attention/Join", ["back", "joined"], ["all"], {}),
        ("Transpose", "/to_out/Transpose", ["to_out.weight"], ["last"], {"perm": [1, 0]}),
        ("MatMul", "/to_out/MatMul", ["all", "last"], ["out"], {}),
    ]
    rng = np.random.default_rng(0)
    halves = onnx.TensorProto.FLOAT16
    arrays = {name: rng.normal(size=shape, scale=0.1) for name, shape in _WEIGHTS.items()}
    arrays["bias"] = rng.normal(size=64)
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(kind, inputs, outputs, name, **attributes)
                for kind, name, inputs, outputs, attributes in nodes
            ],
            "block",
            [onnx.helper.make_tensor_value_info("x", halves, ["B", 64, "h", "w"])],
            [onnx.helper.make_tensor_value_info("out", halves, ["B", "tokens", 64])],
            [onnx.numpy_helper.from_array(a.astype(np.float16), n) for n, a in arrays.items()]
            + [onnx.numpy_helper.from_array(np.array(c), n) for n, c in _CONSTANTS.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )


def quantized(format: str) -> onnx.ModelProto:
    into = FORMATS[format]
    model = ir.from_proto(block())
    layers = quantizable_layers(model.graph, into)
    weights = {}
    for layer in layers:
        for name, rows in layer.part_weights().items():
            value = model.graph.initializers[str(layer.weight)].const_value
            assert value is not None
            made = quantize_weight(torch.from_numpy(value.numpy()[rows].copy()), into)
            numbers = made.values.numpy().view(into.dtype.numpy()).reshape(made.shape)
            weights[name] = (
                ir.Value(name=f"{name}_q", const_value=ir.Tensor(numbers, dtype=into.dtype)),
                ir.Value(name=f"{name}_s", const_value=ir.tensor(made.scale.numpy())),
            )
    ranges = dict.fromkeys(activations_of(layers), 8.0)
    quantize_graph(model, layers, ranges, into, weights, np.dtype(np.float16))
    return ir.to_proto(model)


def job(folder: Path, format: str, gpus: tuple[int, ...]) -> BuildJob:
    onnx.save(quantized(format), folder / "model.onnx")
    shapes = {"x": ((1, 64, 8, 8), (2, 64, 16, 16), (4, 64, 32, 32))}
    output = str(folder / "block.engine")
    return BuildJob("tensorrt_rtx", str(folder / "model.onnx"), output, gpus, (shapes,), {})


@pytest.mark.parametrize(
    ("format", "gpus", "multiplying"),
    [
        ("fp8", (89, 120), {"convolution fp8": 1, "attention fp8": 1}),
        # Its attention is left in 16 bits, and one kernel all the same.
        ("int8", (86, 89, 120), {"convolution int8": 1, "attention half": 1}),
    ],
)
def test_a_quantised_block_runs_in_eight_bits(
    tmp_path: Path, format: str, gpus: tuple[int, ...], multiplying: Mapping[str, int]
) -> None:
    built = build_engine(job(tmp_path, format, gpus))
    assert built.fused_attention == 1
    assert built.multiplying is not None
    products = {f"product {format}"}
    assert {key: n for key, n in built.multiplying.items() if key not in products} == multiplying
    assert built.multiplying[f"product {format}"] >= 2


def test_tensorrt_itself_refuses_fp8_for_an_older_gpu(tmp_path: Path) -> None:
    """What kdrt says before any work, see :mod:`kdrt.build.quantized`."""
    with pytest.raises(EngineError, match="TensorRT cannot build"):
        build_engine(job(tmp_path, "fp8", (86,)))
