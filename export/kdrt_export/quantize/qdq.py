"""The graph pass: ``QuantizeLinear`` and ``DequantizeLinear`` before what a layer multiplies.

    activation ──► QuantizeLinear ──► DequantizeLinear ──► Conv, MatMul
    weight in few bits ─────────────► DequantizeLinear ──►

An engine with kernels for the format multiplies the quantised numbers and scales the result. Any
other computes what is written, in the precision of the rest, so the loss can be measured
everywhere. All is symmetric, without zero points:

    x ≈ s · q        q = round(x / s) in the format        s = max |x| / greatest

with one s for an activation, and of a weight one for all, or for each output channel or block of
one. Scales are stored in the precision of the rest. Results keep their names, so that ``kdrt
compare`` finds the layers in both graphs.

A layer whose outputs are split at once, as the projection to query, key and value, becomes one
product for each part. TensorRT splits such a weight by itself, and dequantises it for that in every
run; products that read the same it multiplies in one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from kdrt_export.dialects.graphs import constant
from kdrt_export.quantize.formats import Format
from kdrt_export.quantize.layers import QuantizableLayer, split_after, weight_of

Ranges = Mapping[str, float]
"""The greatest absolute value of activations, by name."""

_IR_VERSION = 10
"""The first version of the file format that has numbers of 4 bits."""

SWITCH = "quantized_layer"
"""The input of :func:`with_switches`: int64, the place of the one layer that is quantised."""


def quantize_graph(
    model: ir.Model,
    layers: Sequence[QuantizableLayer],
    ranges: Ranges,
    into: Format,
    weights: Mapping[str, tuple[ir.Value, ir.Value]],
    dtype: np.dtype[Any],
) -> None:
    """Quantise layers of a graph, in place. Weights that nothing reads any more are gone from it.

    Args:
        model: a standard graph, with its weights declared.
        layers: of it.
        ranges: of all that they read.
        into: the format.
        weights: the initialisers of each weight in few bits and of its scales (see
            :func:`kdrt_export.quantize.weights.quantize_weight`), by
            :meth:`~kdrt_export.quantize.layers.QuantizableLayer.part_weights`.
        dtype: what the layers compute in without it.
    """
    graph = _prepared(model, into)
    nodes = {str(node.name): node for node in graph}
    quantized: dict[ir.Value, ir.Value] = {}
    for layer in layers:
        for node in (nodes[name] for name in layer.nodes):
            weight = weight_of(node)
            for index in _activations(node, into):
                value = _input(node, index)
                if value not in quantized:
                    scale = constant(graph, _scale(value, ranges, into, dtype))
                    pair = _pair(graph, value, scale, into, str(value.name))
                    graph.insert_before(node, pair)
                    quantized[value] = pair[-1].outputs[0]
                node.replace_input_with(index, quantized[value])
            if weight is not None:
                readers = _in_parts(graph, node) if layer.parts else [node]
                for name, reader in zip(layer.part_weights(), readers, strict=True):
                    numbers, scale = weights[name]
                    graph.initializers.add(numbers)
                    graph.initializers.add(scale)
                    axis = _axis(reader, into)
                    back = _dequantize(numbers, scale, axis, into, name)
                    graph.insert_before(reader, back)
                    reader.replace_input_with(1, back.outputs[0])
    common.RemoveUnusedNodesPass()(model)
    graph.sort()  # a value is quantised before its first reader among the layers, not in the graph


def with_switches(
    model: ir.Model,
    layers: Sequence[QuantizableLayer],
    ranges: Ranges,
    into: Format,
    scales: Mapping[str, np.ndarray],
    dtype: np.dtype[Any],
    groups: Sequence[int] | None = None,
) -> ir.Model:
    """A copy of a graph that quantises one of its layers in each run: that whose place among
    ``layers`` the input ``SWITCH`` says; at -1, none. It reads the weights of the graph itself.

    Args:
        model, layers, ranges, into, dtype: see :func:`quantize_graph`.
        scales: of every weight, as :func:`kdrt_export.quantize.weights.weight_scale` has them.
        groups: of each layer, the number at which it is quantised; its place if there are none.
    """
    model = model.clone()
    graph = _prepared(model, into)
    switch = ir.Value(name=SWITCH, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(()))
    graph.inputs.append(switch)
    nodes = {str(node.name): node for node in graph}
    places = range(len(layers)) if groups is None else groups
    switches: dict[int, ir.Value] = {}
    for place in dict.fromkeys(places):
        equal = ir.node(
            "Equal",
            [switch, constant(graph, np.array(place))],
            outputs=[ir.val(f"{SWITCH}/{place}")],
        )
        graph.insert_before(graph[0], equal)
        switches[place] = equal.outputs[0]
    for place, layer in zip(places, layers, strict=True):
        chosen = switches[place]
        for node in (nodes[name] for name in layer.nodes):
            weight = weight_of(node)
            for index in _activations(node, into):
                value = _input(node, index)
                scale = constant(graph, _scale(value, ranges, into, dtype))
                node.replace_input_with(index, _if(graph, chosen, node, value, scale, into))
            if weight is not None:
                reader = node if node.op_type == "Conv" else _input(node, 1).producer()
                assert reader is not None
                scale = constant(graph, scales[str(weight.name)])
                axis = None if not into.per_channel else 0 if into.block is None else 1
                value = _if(graph, chosen, reader, weight, scale, into, axis)
                reader.replace_input_with(1 if reader is node else 0, value)
    return model


def _prepared(model: ir.Model, into: Format) -> ir.Graph:
    """The graph of a model, which may hold the format from now on. What the networks use is the
    same in all these versions of the operators."""
    model.opset_imports[""] = max(model.opset_imports[""], into.opset)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return model.graph


def _in_parts(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """A product for each part that the outputs of one are split into, in the place of both; they
    still read its whole weight."""
    split = split_after(node)
    assert split is not None
    products = [
        ir.node("MatMul", node.inputs, name=f"{node.name}/part_{place}")
        for place in range(len(split.outputs))
    ]
    graph.insert_before(node, products)
    for old, product in zip(split.outputs, products, strict=True):
        new = product.outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([split, node], safe=True)
    return products


def _axis(reader: ir.Node, into: Format) -> int | None:
    """Where the scales of a weight lie, as its layer reads it."""
    if not into.per_channel:
        return None
    return 0 if reader.op_type == "Conv" or into.block is not None else 1


def _activations(node: ir.Node, into: Format) -> range:
    """The inputs of a node to quantise."""
    if not into.activations:
        return range(0)
    return range(2 if weight_of(node) is None else 1)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _scale(value: ir.Value, ranges: Ranges, into: Format, dtype: np.dtype[Any]) -> np.ndarray:
    producer = value.producer()
    is_probability = producer is not None and producer.op_type == "Softmax"
    greatest = 1.0 if is_probability else ranges[str(value.name)]
    # What was 0 in all of the calibration may be anything.
    wanted = (greatest or 1.0) / into.greatest
    scale = np.array(wanted, dtype)
    # Up, since one that was rounded down does not reach the greatest, and 0 divides nothing.
    return np.nextafter(scale, np.array(np.inf, dtype)) if scale < wanted else scale


def _pair(
    graph: ir.Graph,
    value: ir.Value,
    scale: ir.Value,
    into: Format,
    name: str,
    axis: int | None = None,
) -> list[ir.Node]:
    """Nodes that quantise a value and dequantise it."""
    shape = () if scale.shape is None else scale.shape.numpy()
    zero = constant(graph, np.zeros(shape, into.dtype.numpy()))
    quantize = ir.node(
        "QuantizeLinear",
        [value, scale, zero],
        attributes=_attributes(axis, into),
        outputs=[ir.val(f"{name}/quantized")],
        name=f"{name}/QuantizeLinear",
    )
    return [quantize, _dequantize(quantize.outputs[0], scale, axis, into, name)]


def _dequantize(
    numbers: ir.Value, scale: ir.Value, axis: int | None, into: Format, name: str
) -> ir.Node:
    return ir.node(
        "DequantizeLinear",
        [numbers, scale],
        attributes=_attributes(axis, into),
        outputs=[ir.val(f"{name}/dequantized")],
        name=f"{name}/DequantizeLinear",
    )


def _attributes(axis: int | None, into: Format) -> dict[str, int]:
    if axis is None:
        return {}
    return {"axis": axis} | ({} if into.block is None else {"block_size": into.block})


def _if(
    graph: ir.Graph,
    chosen: ir.Value,
    reader: ir.Node,
    value: ir.Value,
    scale: ir.Value,
    into: Format,
    axis: int | None = None,
) -> ir.Value:
    """A value that is quantised where a layer is chosen, for a reader of it."""
    name = f"{reader.name}/{value.name}"
    pair = _pair(graph, value, scale, into, name, axis)
    same = ir.node("Identity", [value], outputs=[ir.val(f"{name}/same")])
    branches = {
        "then_branch": ir.Graph([], pair[-1].outputs, nodes=pair, name=f"{name}/then"),
        "else_branch": ir.Graph([], same.outputs, nodes=[same], name=f"{name}/else"),
    }
    either = ir.node(
        "If", [chosen], attributes=branches, outputs=[ir.val(f"{name}/either")], name=f"{name}/If"
    )
    graph.insert_before(reader, either)
    return either.outputs[0]
