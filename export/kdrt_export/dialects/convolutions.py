"""Convolutions that the passes for CPUs compute in another way: which, and with what filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.graphs import Replacement, constant, integers, numbers

TAPS = 3


def filters_of(node: ir.Node) -> tuple[int, int] | None:
    """The channels out and in of a convolution of 3 x 3 with stride 1, padding 1 and one group,
    whose filters are stored in float32 or as bytes that become float32; None of any other node."""
    if (node.domain, node.op_type) != ("", "Conv"):
        return None
    filters = _stored(node.inputs[1])
    is_plain = (
        filters is not None
        and filters[2:] == (TAPS, TAPS)
        and set(numbers(node, "strides")) <= {1}
        and set(numbers(node, "dilations")) <= {1}
        and set(numbers(node, "pads")) == {1}
        and ("group" not in node.attributes or node.attributes["group"].as_int() == 1)
    )
    return (filters[0], filters[1]) if filters is not None and is_plain else None


def sums_of_filters(
    graph: ir.Graph,
    new: Replacement,
    weight: ir.Value | None,
    channels: tuple[int, int],
    sums: np.ndarray,
) -> Sequence[ir.Value]:
    """Several filters in place of those of a convolution, each tap a sum of their nine.

    They are summed up in the graph, from weights that keep their names and places: ONNX Runtime
    does it once, when it loads.

    Args:
        new: what will take the place of the convolution.
        weight: its filters.
        channels: what :func:`filters_of` says of it.
        sums: ``[filters, rows, columns, 9]``: how much of every tap of three rows of three is in
            every tap of the filters.

    Returns:
        Weights ``[out, in, rows, columns]``, as many as there are filters.
    """
    count, *kernel, _ = sums.shape
    taps = new.op("Reshape", weight, integers(graph, -1, TAPS * TAPS))
    taps = new.op("MatMul", taps, constant(graph, sums.reshape(-1, TAPS * TAPS).T))
    taps = new.op("Reshape", taps, integers(graph, *channels, count, *kernel))
    taps = new.op("Transpose", taps, attributes={"perm": [2, 0, 1, 3, 4]})
    taps = new.op("Reshape", taps, integers(graph, -1, channels[1], *kernel))
    return new.ops("Split", taps, outputs=count, attributes={"axis": 0, "num_outputs": count})


def _stored(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    source = value.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        scales = source.inputs[1]
        if scales is None or scales.dtype != ir.DataType.FLOAT or source.inputs[0] is None:
            return None
        value = source.inputs[0]
    elif value.dtype != ir.DataType.FLOAT:
        return None
    if not value.is_initializer() or value.shape is None:
        return None
    return tuple(int(size) for size in value.shape)
