"""Convolutions with half the multiplications.

Four neighbouring results of a filter of three taps need twelve products; Winograd's algorithm
F(4, 3) finds them with six, from sums of the six inputs and of the taps (Winograd, "Arithmetic
complexity of computations", 1980; for networks Lavin & Gray, arXiv:1509.09308). Here it runs down
the columns of a picture: the rows of three by three filters stay filters of three taps, which the
kernels of ONNX Runtime compute, so a convolution becomes

    six sums of every six rows          a convolution of one channel, four rows at a time
    six convolutions of 1 x 3           one of six groups: this is the work, half of what it was
    four rows of every six results      a matrix product

In both directions it would be a quarter of the work, but the sums then cost what they save and the
error grows fourfold; in one it is about twice that of the plain convolution, 5e-7.

The filters are transformed in the graph, from weights that keep their names and places: ONNX
Runtime does it once, when it loads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.graphs import Replacement, Rows, constant, integers, numbers, rows_of

TAPS = 3
ROWS = 4
"""Results of one application; it reads ``ROWS + TAPS - 1`` rows."""
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where the polynomials behind the algorithm are evaluated, besides infinity: those of least
rounding error for this size (Barabasz et al., arXiv:1803.10986)."""
_AT_ONE = _POINTS.index(1.0)

LEAST_CHANNELS = (256, 128)
"""In, out."""
LEAST_ROWS = 32
_BLOCK = 16
"""Kernels that hold channels in blocks, up to this size, want whole blocks in every group."""


def winograd(graph: ir.Graph, picture: Rows) -> int:
    """Convolutions of 3 x 3 with stride 1 and padding 1, where that is faster.

    Few channels leave little work beside the sums, and few rows make the filters, twice as large,
    the larger part of what is read: both stay as they are.

    Args:
        picture: the height of the graph's input.
    """
    rows = rows_of(graph, picture)
    sites = [
        node for node in graph if _is_suitable(node) and rows[node.outputs[0]].usual >= LEAST_ROWS
    ]
    for node in sites:
        _transform(graph, node, whole=rows[node.outputs[0]].multiple % ROWS == 0)
    return len(sites)


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(4, 3), float64: for the results ``[4, 6]``, the taps ``[6, 3]`` and the
    inputs ``[6, 6]``. With them ``results @ ((taps @ g) * (inputs @ d))`` are the four results of a
    filter ``g`` on six values ``d``.

    That is the transpose of multiplying two polynomials by way of their values at six points
    (Toom-Cook). Rows of the last two are scaled against each other, so that sums of inputs stay in
    their range.
    """
    size = ROWS + TAPS - 1

    def values(coefficients: int) -> np.ndarray:
        at_infinity = np.eye(coefficients)[-1:]
        return np.concatenate([np.vander(_POINTS, coefficients, increasing=True), at_infinity])

    inputs = np.linalg.inv(values(size)).T
    # Powers of two change no digits.
    scale = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))
    return values(ROWS).T, values(TAPS) * scale, inputs / scale


def _is_suitable(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Conv"):
        return False
    filters = _stored(node.inputs[1])
    if filters is None or filters[2:] != (TAPS, TAPS):
        return False
    return (
        filters[1] >= LEAST_CHANNELS[0]
        and filters[0] >= LEAST_CHANNELS[1]
        and all(size % _BLOCK == 0 for size in filters[:2])
        and set(numbers(node, "strides")) <= {1}
        and set(numbers(node, "dilations")) <= {1}
        and set(numbers(node, "pads")) == {1}
        and ("group" not in node.attributes or node.attributes["group"].as_int() == 1)
    )


def _stored(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of stored float32 weights, or of those that are stored as bytes."""
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


def _transform(graph: ir.Graph, node: ir.Node, *, whole: bool) -> None:
    """``whole``: the rows always come in fours."""
    x, weight, *biases = node.inputs
    shape = _stored(weight)
    assert shape is not None
    out_channels, channels = shape[:2]
    results, taps, inputs = (matrix.astype(np.float32) for matrix in transforms())
    size = len(inputs)
    new = Replacement(graph, node)

    # One product for all filters, every column of theirs by itself: [9] to [6·3].
    columns = constant(graph, np.kron(taps.T, np.eye(TAPS, dtype=np.float32)))
    filters = new.op("Reshape", weight, integers(graph, -1, TAPS * TAPS))
    filters = new.op("MatMul", filters, columns)
    filters = new.op("Reshape", filters, integers(graph, out_channels, channels, size, TAPS))
    filters = new.op("Transpose", filters, attributes={"perm": [2, 0, 1, 3]})
    filters = new.op("Reshape", filters, integers(graph, -1, channels, 1, TAPS))

    # Rows above and below are zeros, below as many as the last application reads.
    column = constant(graph, inputs.reshape(size, 1, 1, size, 1))
    sums = new.op(
        "Conv",
        new.op("Unsqueeze", x, integers(graph, 1)),
        column,
        attributes={"strides": [1, ROWS, 1], "pads": [0, 1, 0, 0, ROWS, 0]},
    )  # [B, 6, in, H/4, W]
    width = new.op("Shape", x, attributes={"start": 3, "end": 4})

    def as_wide(*sizes: int) -> ir.Value:
        return new.op("Concat", integers(graph, *sizes), width, attributes={"axis": 0})

    # The value of a polynomial at one is in each of the four results once: so is the bias, there.
    before, after = _AT_ONE * out_channels, (size - 1 - _AT_ONE) * out_channels
    biases = [new.op("Pad", bias, integers(graph, before, after)) for bias in biases]
    products = new.op(
        "Conv",
        new.op("Reshape", sums, as_wide(0, size * channels, -1)),
        filters,
        *biases,
        attributes={"pads": [0, 1, 0, 1], "group": size},
    )  # [B, 6·out, H/4, W]
    sixes = new.op("Reshape", products, integers(graph, 0, size, -1))
    rows = new.op("MatMul", constant(graph, results), sixes)
    rows = new.op("Reshape", rows, as_wide(0, ROWS, -1))  # [B, 4, out·H/4, W]
    rows = new.op("Transpose", rows, attributes={"perm": [0, 2, 1, 3]})
    rows = new.op("Reshape", rows, integers(graph, 0, out_channels, -1, 0))
    if not whole:
        height = new.op("Shape", x, attributes={"start": 2, "end": 3})
        rows = new.op("Slice", rows, integers(graph, 0), height, integers(graph, 2))
    new.done(rows)
