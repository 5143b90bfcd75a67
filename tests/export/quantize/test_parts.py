"""Layers whose outputs are split at once, and attentions that TensorRT-RTX would not fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from kdrt_export.onnx.session import session_of
from kdrt_export.quantize.formats import FORMATS, Format
from kdrt_export.quantize.layers import QuantizableLayer, is_fused, quantizable_layers
from kdrt_export.quantize.qdq import quantize_graph
from kdrt_export.quantize.weights import quantize_weight

SIZES = (64, 64, 128)
"""Outputs of the parts."""


@pytest.fixture
def graph() -> onnx.ModelProto:
    """A projection in three parts."""
    weight = np.random.default_rng(0).normal(size=(sum(SIZES), 64), scale=0.1).astype(np.float32)
    weight[SIZES[0] :] *= 3.0
    nodes: list[tuple[str, str, list[str], list[str], dict[str, Any]]] = [
        (
            "Transpose",
            "/attn/to_qkv/Transpose",
            ["attn.to_qkv.weight"],
            ["turned"],
            {"perm": [1, 0]},
        ),
        ("MatMul", "/attn/to_qkv/MatMul", ["x", "turned"], ["whole"], {}),
        ("Split", "/attn/Split", ["whole", "sizes"], ["q", "k", "v"], {"axis": -1}),
    ]
    floats = onnx.TensorProto.FLOAT
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(kind, inputs, outputs, name, **attributes)
                for kind, name, inputs, outputs, attributes in nodes
            ],
            "projection",
            [onnx.helper.make_tensor_value_info("x", floats, [2, 5, 64])],
            [onnx.helper.make_tensor_value_info(name, floats, None) for name in "qkv"],
            [
                onnx.numpy_helper.from_array(weight, "attn.to_qkv.weight"),
                onnx.numpy_helper.from_array(np.array(SIZES), "sizes"),
            ],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )


@pytest.mark.parametrize("into", FORMATS.values(), ids=FORMATS)
def test_a_split_layer_becomes_one_product_for_each_part(
    graph: onnx.ModelProto, into: Format
) -> None:
    """Else TensorRT splits the weight itself, and dequantises it for that in every run."""
    model = ir.from_proto(graph)
    layers = quantizable_layers(model.graph, into)
    assert [layer.parts for layer in layers] == [SIZES]
    whole = onnx.numpy_helper.to_array(graph.graph.initializer[0])
    weights = {}
    rows_of = layers[0].part_weights()
    for name, rows in rows_of.items():
        made = quantize_weight(torch.from_numpy(whole[rows].copy()), into)
        numbers = made.values.numpy()
        weights[name] = (
            ir.Value(name=f"{name}_q", const_value=_tensor(numbers, made.shape, into)),
            ir.Value(name=f"{name}_s", const_value=ir.tensor(made.scale.numpy())),
        )
    quantize_graph(model, layers, {"x": 4.0}, into, weights, np.dtype(np.float32))

    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMul") == 3
    assert "Split" not in kinds
    assert kinds.count("QuantizeLinear") == int(into.activations)
    x = np.random.default_rng(1).normal(size=(2, 5, 64)).astype(np.float32)
    found = session_of(ir.to_proto(model), Path()).run(["q", "k", "v"], {"x": x})
    for result, rows in zip(found, rows_of.values(), strict=True):
        expected = x @ whole[rows].T
        error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        assert 1e-3 < error < (0.15 if into.block else 0.05)


def test_a_product_that_others_read_too_stays_whole(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(onnx.helper.make_node("Relu", ["whole"], ["other"], "/Relu"))
    (layer,) = quantizable_layers(ir.from_proto(graph).graph, FORMATS["fp8"])
    assert layer.parts == ()
    assert list(layer.part_weights()) == ["attn.to_qkv.weight"]


@pytest.mark.parametrize(
    ("queries", "keys", "fused"),
    [
        (256, 256, True),
        (128, 128, True),
        (64, 64, False),  # 16 at half the side
        (64, 77, True),  # the prompt's
        (4096, 16, False),
    ],
)
def test_attention_to_few_keys_is_not_for_eight_bits(queries: int, keys: int, fused: bool) -> None:
    layer = QuantizableLayer("attn", "attention", ("a", "b"), ("q", "k", "p", "v"), None)
    assert is_fused(layer, {"p": (2, 8, queries, keys)}) == fused


def test_other_layers_need_no_keys() -> None:
    layer = QuantizableLayer("to_q", "linear", ("a",), ("x",), "to_q.weight")
    assert is_fused(layer, {})


def _tensor(numbers: np.ndarray, shape: tuple[int, ...], into: Format) -> ir.TensorProtocol:
    if into.block is not None:
        return ir.PackedTensor(numbers, into.dtype, shape=ir.Shape(shape))
    return ir.Tensor(numbers.view(into.dtype.numpy()).reshape(shape), dtype=into.dtype)
