"""The estimate on a network small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from kdrt_export.errors import ExportError
from kdrt_export.quantize.roofline import Gpu, Work, least_seconds, work_of

SHAPES = {"x": (2, 8, 4, 6)}
GPU = Gpu("card", bandwidth=1000.0, rates={"fp16": 100.0, "int8": 200.0}, source="nowhere")


@pytest.fixture
def graph() -> onnx.ModelProto:
    """A convolution to 16 channels, a linear layer to 32, and an attention of one head."""
    halves = onnx.TensorProto.FLOAT16
    weights = {"conv.weight": (16, 8, 3, 3), "to_q.weight": (32, 16), "rows": (3,)}
    nodes: list[tuple[str, str, list[str], str, dict[str, Any]]] = [
        ("Conv", "/conv/Conv", ["x", "conv.weight"], "maps", {"pads": [1, 1, 1, 1]}),
        ("Reshape", "/Reshape", ["maps", "rows"], "flat", {}),
        ("Transpose", "/Transpose", ["flat"], "tokens", {"perm": [0, 2, 1]}),
        ("Transpose", "/to_q/Transpose", ["to_q.weight"], "turned", {"perm": [1, 0]}),
        ("MatMul", "/to_q/MatMul", ["tokens", "turned"], "q", {}),
        ("Transpose", "/attn/Attention/Transpose", ["q"], "k", {"perm": [0, 2, 1]}),
        ("MatMul", "/attn/Attention/MatMul", ["q", "k"], "scores", {}),
        ("Softmax", "/attn/Attention/Softmax", ["scores"], "p", {"axis": -1}),
        ("MatMul", "/attn/Attention/MatMul_1", ["p", "q"], "out", {}),
    ]
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(kind, inputs, [output], name, **attributes)
                for kind, name, inputs, output, attributes in nodes
            ],
            "small",
            [onnx.helper.make_tensor_value_info("x", halves, ["B", 8, "h", "w"])],
            [onnx.helper.make_tensor_value_info("out", halves, None)],
            [
                onnx.numpy_helper.from_array(
                    np.array([0, 16, -1]) if name == "rows" else np.zeros(shape, np.float16), name
                )
                for name, shape in weights.items()
            ],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_operations_and_numbers_are_those_counted_by_hand(graph: onnx.ModelProto) -> None:
    tokens = 2 * 24
    assert work_of(graph, SHAPES) == [
        Work("conv", "convolution", 2 * tokens * 16 * 72, tokens * 8 + 16 * 72, tokens * 16),
        Work("to_q", "linear", 2 * tokens * 32 * 16, tokens * 16 + 32 * 16, tokens * 32),
        Work("attn", "attention", 2 * 2 * tokens * 24 * 32, 3 * tokens * 32, tokens * 32),
    ]


def test_a_layer_takes_the_longer_of_both() -> None:
    bound_by_operations = Work("a", "linear", operations=1000, read=10, written=10)
    bound_by_memory = Work("b", "linear", operations=10, read=900, written=200)
    both = [bound_by_operations, bound_by_memory]
    assert least_seconds(both, GPU, "fp16") == pytest.approx(1000 / 100 + 2200 / 1000)
    # What is written stays in 16 bits.
    assert least_seconds(both, GPU, "int8") == pytest.approx(1000 / 200 + 1300 / 1000)
    left = {("b", "linear")}
    assert least_seconds(both, GPU, "int8", left) == pytest.approx(1000 / 200 + 2200 / 1000)


def test_a_size_that_does_not_follow_is_an_error(graph: onnx.ModelProto) -> None:
    graph.graph.input.append(
        onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["n"])
    )
    del graph.graph.initializer[2]
    with pytest.raises(ExportError, match="does not follow from those of the inputs"):
        work_of(graph, SHAPES | {"rows": (3,)})
