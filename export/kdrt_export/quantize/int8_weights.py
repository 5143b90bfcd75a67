"""Weights as bytes, for size: a graph pass that dequantises them where the graph begins.

Of a convolution or linear layer every output channel c gets a scale of its own, the least that
holds all of its weights in 127 steps either side (symmetric, no zero point):

    scale[c] = max |W[c]| / 127        W[c] ≈ scale[c] · int8[c]

Both are stored, and a standard ``DequantizeLinear`` gives the weight under its old name, so the
rest of the graph stays as it is. An engine folds that when it loads: it computes with the rounded
weights in the precision of the scales, at the speed of any others.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from torch import Tensor

from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.weights import rounded, weight_scale

MIN_SIZE = 4096
"""Elements below which a weight stays as it is: there would be nothing to gain."""

QUANTISED = ("_int8", "_scale")
"""What the two parts of a weight are called after it."""

_READERS = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Transpose": 0}
"""Operators that read a weight with the output channels first, and as which input."""


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight ``[O, …]`` as int8 of its shape and a scale ``[O]`` of its dtype."""
    scale = weight_scale(weight, FORMATS["int8"])
    steps = scale.float().reshape(-1, *[1] * (weight.ndim - 1))
    return rounded(weight.detach().float() / steps, FORMATS["int8"]), scale


def quantise_weights(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the weights among the inputs of a graph, in place.

    Args:
        graph: takes every tensor it uses as an input of that name.
        tensors: by name, all there are.

    Returns:
        By name, the tensors that the graph takes now.
    """
    chosen = _weights(graph, tensors)
    results = {name: tensor for name, tensor in tensors.items() if name not in chosen}
    inputs = list(graph.input)
    dequantised = []
    for value in [each for each in inputs if each.name in chosen]:
        inputs.remove(value)
        parts = [f"{value.name}{suffix}" for suffix in QUANTISED]
        for part, tensor in zip(parts, quantise(tensors[value.name]), strict=True):
            results[part] = tensor
            inputs.append(onnx.ValueInfoProto(name=part))
        dequantised.append(
            onnx.helper.make_node("DequantizeLinear", parts, [value.name], value.name, axis=0)
        )
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = [*dequantised, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return results


def _weights(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> set[str]:
    """The names of what only layers read, and read as their weight."""
    large = {
        value.name
        for value in graph.input
        if value.name in tensors
        and tensors[value.name].ndim in (2, 4)
        and tensors[value.name].numel() >= MIN_SIZE
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            if index != _READERS.get(node.op_type):
                large.discard(name)
    read = {name for node in graph.node for name in node.input}
    return large & read
