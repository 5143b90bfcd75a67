"""The graph pass on a small graph, beside the same formulas in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from kdrt_export.onnx.session import session_of
from kdrt_export.quantize.formats import FORMATS, Format
from kdrt_export.quantize.layers import QuantizableLayer, activations_of, quantizable_layers
from kdrt_export.quantize.qdq import SWITCH, quantize_graph, with_switches
from kdrt_export.quantize.ranges import measure_ranges
from kdrt_export.quantize.sensitivity import scan
from kdrt_export.quantize.weights import quantize_weight, weight_scale

SIZES = {"x": (2, 64, 5, 3)}
ROWS = {"conv_in": (64, 64, 1, 1), "block.conv": (8, 64, 3, 3), "block.to_q": (64, 64)}


@pytest.fixture
def graph() -> onnx.ModelProto:
    """A convolution that stays, one that is quantised, a linear layer and an attention, whose two
    products read the same."""
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(
            rng.normal(size=shape, scale=0.1).astype(np.float32), f"{name}.weight"
        )
        for name, shape in ROWS.items()
    ]
    nodes: list[tuple[str, str, list[str], str, dict[str, Any]]] = [
        ("Conv", "/conv_in/Conv", ["x", "conv_in.weight"], "first", {}),
        (
            "Conv",
            "/block/conv/Conv",
            ["first", "block.conv.weight"],
            "conv",
            {"pads": [1, 1, 1, 1]},
        ),
        ("Transpose", "/block/to_rows", ["first"], "rows", {"perm": [0, 2, 3, 1]}),
        ("Transpose", "/block/to_q/Transpose", ["block.to_q.weight"], "turned", {"perm": [1, 0]}),
        ("MatMul", "/block/to_q/MatMul", ["rows", "turned"], "q", {}),
        ("Transpose", "/block/attn/Attention/T", ["q"], "k", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "/block/attn/Attention/MatMul", ["q", "k"], "scores", {}),
        ("Softmax", "/block/attn/Attention/Softmax", ["scores"], "probabilities", {"axis": -1}),
        ("MatMul", "/block/attn/Attention/MatMul_1", ["probabilities", "q"], "out", {}),
        ("MatMul", "/block/other/MatMul", ["rows", "k"], "not a layer", {}),
    ]
    floats = onnx.TensorProto.FLOAT
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(kind, inputs, [output], name, **attributes)
                for kind, name, inputs, output, attributes in nodes
            ],
            "small",
            [onnx.helper.make_tensor_value_info("x", floats, SIZES["x"])],
            [onnx.helper.make_tensor_value_info(name, floats, None) for name in ("conv", "out")],
            weights,
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    results: list[np.ndarray] = session_of(model, Path()).run(None, dict(inputs))
    return results


def quantized(model: ir.Model, layers: list[QuantizableLayer], into: Format) -> ir.Model:
    """The graph with these layers quantised on ranges that are powers of two."""
    model = model.clone()
    weights = {}
    for layer in layers:
        if layer.weight is None:
            continue
        value = model.graph.initializers[layer.weight].const_value
        assert value is not None
        made = quantize_weight(torch.from_numpy(value.numpy()), into)
        numbers = made.values.numpy()
        tensor: ir.TensorProtocol
        if into.block is None:
            numbers = numbers.view(into.dtype.numpy()).reshape(made.shape)
            tensor = ir.Tensor(numbers, dtype=into.dtype)
        else:
            tensor = ir.PackedTensor(numbers, into.dtype, shape=ir.Shape(made.shape))
        scale = ir.tensor(made.scale.numpy())
        weights[layer.weight] = (
            ir.Value(name=f"{layer.weight}_q", const_value=tensor),
            ir.Value(name=f"{layer.weight}_s", const_value=scale),
        )
    quantize_graph(model, layers, ranges(layers), into, weights, np.dtype(np.float32))
    return model


def ranges(layers: list[QuantizableLayer]) -> dict[str, float]:
    return dict.fromkeys(activations_of(layers), 64.0)


def rounded(array: np.ndarray, scale: np.ndarray | float, into: Format) -> np.ndarray:
    """The formula, in float64."""
    steps = array.astype(np.float32) / np.float32(scale)
    if into.name == "fp8":
        numbers = np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        numbers = np.clip(np.rint(steps), -into.greatest, into.greatest).astype(np.float64)
    return numbers * scale


def test_layers_are_found_by_what_they_are(graph: onnx.ModelProto) -> None:
    model = ir.from_proto(graph)
    found = {
        name: [(layer.name, layer.kind) for layer in quantizable_layers(model.graph, into)]
        for name, into in FORMATS.items()
    }
    linear, conv = ("block.to_q", "linear"), ("block.conv", "convolution")
    assert found["fp8"] == [conv, linear, ("block.attn", "attention")]
    assert found["int8"] == [conv, linear]
    assert found["int4-weights"] == [linear]
    (attention,) = [
        layer
        for layer in quantizable_layers(model.graph, FORMATS["fp8"])
        if layer.kind == "attention"
    ]
    assert attention.reads == ("q", "k", "probabilities", "q")
    assert activations_of([attention]) == ["q", "k", "probabilities"]


@pytest.mark.parametrize("into", FORMATS.values(), ids=FORMATS)
def test_the_graph_computes_the_formula(graph: onnx.ModelProto, into: Format) -> None:
    model = ir.from_proto(graph)
    layers = quantizable_layers(model.graph, into)
    x = np.random.default_rng(1).normal(size=SIZES["x"]).astype(np.float32)
    proto = ir.to_proto(quantized(model, layers, into))
    conv, out = run(proto, {"x": x})

    first, w_conv, w_q = (onnx.numpy_helper.to_array(w) for w in graph.graph.initializer)
    step = 64.0 / into.greatest
    rows = np.einsum("oi,bihw->bhwo", first[:, :, 0, 0].astype(np.float64), x)
    scales = weight_scale(torch.from_numpy(w_q), into).double().numpy()
    scales = scales if scales.ndim == 2 else np.broadcast_to(scales, 64)[:, None]
    w_q = rounded(w_q, scales.repeat(64 // scales.shape[1], axis=1), into)
    q = (rounded(rows, step, into) if into.activations else rows) @ w_q.T
    seen = rounded(q, step, into) if into.kinds >= {"attention"} else q
    scores = seen @ seen.swapaxes(2, 3)
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    if "attention" in into.kinds:
        probabilities = rounded(probabilities, 1 / into.greatest, into)
    # A number between two steps may go either way after float32 sums in another order.
    assert np.linalg.norm(out - probabilities @ seen) / np.linalg.norm(out) < 5e-3
    if "convolution" in into.kinds:
        per_channel = weight_scale(torch.from_numpy(w_conv), into).double().numpy()
        w_conv = rounded(w_conv, per_channel.reshape(-1, 1, 1, 1), into)
        rows = rounded(rows, step, into)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(rows.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(w_conv.astype(np.float64)),
        padding=1,
    ).numpy()
    assert np.linalg.norm(conv - expected) / np.linalg.norm(expected) < 2e-3


def test_what_two_layers_read_is_quantised_once(graph: onnx.ModelProto) -> None:
    model = ir.from_proto(graph)
    layers = quantizable_layers(model.graph, FORMATS["fp8"])
    made = quantized(model, layers, FORMATS["fp8"])
    pairs = [node.name for node in made.graph if node.op_type == "QuantizeLinear"]
    assert sorted(map(str, pairs)) == [
        f"{name}/QuantizeLinear" for name in ("first", "k", "probabilities", "q", "rows")
    ]
    assert "block.conv.weight" not in made.graph.initializers
    assert "conv_in.weight" in made.graph.initializers


@pytest.mark.parametrize("into", FORMATS.values(), ids=FORMATS)
def test_switches_quantise_one_layer_in_each_run(graph: onnx.ModelProto, into: Format) -> None:
    model = ir.from_proto(graph)
    layers = quantizable_layers(model.graph, into)
    scales = {
        layer.weight: weight_scale(
            torch.from_numpy(model.graph.initializers[layer.weight].const_value.numpy()),
            into,
        ).numpy()
        for layer in layers
        if layer.weight is not None
    }
    switched = ir.to_proto(
        with_switches(model, layers, ranges(layers), into, scales, np.dtype(np.float32))
    )
    x = np.random.default_rng(2).normal(size=SIZES["x"]).astype(np.float32)

    def outputs(number: int) -> list[np.ndarray]:
        return run(switched, {"x": x, SWITCH: np.array(number)})

    for one, other in zip(outputs(-1), run(graph, {"x": x}), strict=True):
        assert np.linalg.norm(one - other) / np.linalg.norm(other) < 1e-6
    for number, layer in enumerate(layers):
        alone = run(ir.to_proto(quantized(model, [layer], into)), {"x": x})
        for one, other in zip(outputs(number), alone, strict=True):
            assert np.linalg.norm(one - other) / np.linalg.norm(other) < 1e-5


def test_the_errors_of_a_block_add_up_to_its_own(graph: onnx.ModelProto, tmp_path: Path) -> None:
    into = FORMATS["fp8"]
    path = tmp_path / "model.onnx"
    model = ir.from_proto(graph)
    layers = quantizable_layers(model.graph, into)
    x = np.random.default_rng(4).normal(size=SIZES["x"]).astype(np.float32)
    whole = run(ir.to_proto(quantized(model, layers, into)), {"x": x})
    error = max(  # of the output that is furthest off
        np.linalg.norm(one - other) / np.linalg.norm(other)
        for one, other in zip(whole, run(graph, {"x": x}), strict=True)
    )
    onnx.save(graph, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    loaded = ir.load(path)
    found = scan(loaded, path, layers, ranges(layers), into, [{"x": x}], by_blocks=True)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert np.linalg.norm(found) == pytest.approx(error, rel=1e-4)


def test_ranges_are_those_of_the_runs(graph: onnx.ModelProto) -> None:
    rng = np.random.default_rng(3)
    samples = [{"x": rng.normal(size=SIZES["x"]).astype(np.float32)} for _ in range(3)]
    shown = onnx.ModelProto()
    shown.CopyFrom(graph)
    shown.graph.output.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, None))
    measured = measure_ranges(graph, Path(), ["x", "q"], samples)
    assert measured.greatest == {
        "x": pytest.approx(max(np.abs(sample["x"]).max() for sample in samples)),
        "q": pytest.approx(max(np.abs(run(shown, sample)[-1]).max() for sample in samples)),
    }
    assert measured.shapes == {"x": (2, 64, 5, 3), "q": (2, 5, 3, 64)}


@pytest.mark.parametrize("greatest", [0.0, 1e-9, 3e-6, 0.01, 7.0, 60000.0])
def test_a_scale_in_float16_reaches_the_greatest(graph: onnx.ModelProto, greatest: float) -> None:
    into = FORMATS["int8"]
    model = ir.from_proto(graph)
    layers = [
        layer for layer in quantizable_layers(model.graph, into) if layer.name == "block.conv"
    ]
    weights = {"block.conv.weight": (ir.val("q"), ir.val("s"))}
    quantize_graph(model, layers, {"first": greatest}, into, weights, np.dtype(np.float16))
    (quantize,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    scale = quantize.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    found = scale.const_value.numpy()
    assert found.dtype == np.float16
    wanted = (greatest or 1.0) / 127
    assert wanted <= found <= max(1.001 * wanted, wanted + 6e-8)
