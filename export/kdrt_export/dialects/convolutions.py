"""Which convolutions the passes for CPUs compute in another way."""

from __future__ import annotations

import onnx_ir as ir

from kdrt_export.dialects.graphs import numbers

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
