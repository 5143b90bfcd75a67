"""Convolutions with half the multiplications.

Four neighbouring results of a filter of three taps need twelve products; Winograd's algorithm
F(4, 3) finds them with six, from sums of the six inputs and of the taps (Winograd, "Arithmetic
complexity of computations", 1980; for networks Lavin & Gray, arXiv:1509.09308). Here it runs down
the columns of an image: the rows of three by three filters stay filters of three taps, which the
kernels of ONNX Runtime compute, so a convolution becomes

    six sums of every six rows          a filter of 6 x 1 on every channel, four rows at a time
    for each a convolution of 1 x 3     this is the work, half of what it was
    four rows of every six results      a matrix product

The sums are made one by one, and each is gone once it is multiplied: together they would be half as
large again as the image.

In both directions it would be a quarter of the work, but the sums then cost what they save and the
error grows fourfold; in one it is about twice that of the plain convolution, 5e-7.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.convolutions import TAPS, filters_of, sums_of_filters
from kdrt_export.dialects.graphs import Attributes, Replacement, Rows, constant, integers, rows_of
from kdrt_export.dialects.upsampling import enlarged_by

ROWS = 4
"""Results of one application; it reads ``ROWS + TAPS - 1`` rows."""
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where the polynomials behind the algorithm are evaluated, besides infinity: those of least
rounding error for this size (Barabasz et al., arXiv:1803.10986)."""
_AT_ONE = _POINTS.index(1.0)

MIN_CHANNELS = (256, 128)
"""In, out."""
MIN_ROWS = 32
_BLOCK = 16
"""Kernels that hold channels in blocks, up to this size, want whole blocks in every group."""


def winograd(graph: ir.Graph, image: Rows) -> int:
    """Convolutions of 3 x 3 with stride 1 and padding 1, where that is faster.

    Few channels leave little work beside the sums, and few rows make the filters, twice as large,
    the larger part of what is read: both stay as they are.

    Args:
        image: the size of the graph's input.
    """
    rows = rows_of(graph, image)
    sites = [
        node
        for node in graph
        if rows[node.outputs[0]].usual >= MIN_ROWS and _is_suitable(node, rows)
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


def _is_suitable(node: ir.Node, rows: Mapping[ir.Value, Rows]) -> bool:
    filters = filters_of(node)
    if filters is None:
        return False
    out_channels, channels = filters
    return (
        enlarged_by(node, rows) is None
        and channels >= MIN_CHANNELS[0]
        and out_channels >= MIN_CHANNELS[1]
        and all(size % _BLOCK == 0 for size in filters)
    )


def _transform(graph: ir.Graph, node: ir.Node, *, whole: bool) -> None:
    """``whole``: the rows always come in fours."""
    x, weight, *biases = node.inputs
    shape = filters_of(node)
    assert shape is not None
    out_channels, channels = shape
    results, taps, inputs = (matrix.astype(np.float32) for matrix in transforms())
    size = len(inputs)
    new = Replacement(graph, node)

    # Every column of a filter by itself.
    columns = np.kron(taps, np.eye(TAPS, dtype=np.float32))
    each = sums_of_filters(graph, new, weight, shape, columns.reshape(size, 1, TAPS, -1))

    # Rows above and below are zeros, below as many as the last application reads.
    strided: Attributes = {"strides": [ROWS, 1], "pads": [1, 0, ROWS, 0], "group": channels}
    products = []
    for k, filters_of_one in enumerate(each):
        column = np.tile(inputs[k].reshape(1, 1, size, 1), (channels, 1, 1, 1))
        sums = new.op("Conv", x, constant(graph, column), attributes=strided)
        # The value of a polynomial at one is in each of the four results once: so is the bias.
        added = biases if k == _AT_ONE else []
        products.append(
            new.op("Conv", sums, filters_of_one, *added, attributes={"pads": [0, 1, 0, 1]})
        )
    joined = new.op("Concat", *products, attributes={"axis": 1})  # [B, 6·out, H/4, W]
    # Asked of the input, which may be the larger, it would keep that in memory until now.
    width = new.op("Shape", joined, attributes={"start": 3, "end": 4})

    def as_wide(*sizes: int) -> ir.Value:
        return new.op("Concat", integers(graph, *sizes), width, attributes={"axis": 0})

    sixes = new.op("Reshape", joined, integers(graph, 0, size, -1))
    rows = new.op("MatMul", constant(graph, results), sixes)
    rows = new.op("Reshape", rows, as_wide(0, ROWS, -1))  # [B, 4, out·H/4, W]
    rows = new.op("Transpose", rows, attributes={"perm": [0, 2, 1, 3]})
    rows = new.op("Reshape", rows, integers(graph, 0, out_channels, -1, 0))
    if not whole:
        height = new.op("Shape", x, attributes={"start": 2, "end": 3})
        rows = new.op("Slice", rows, integers(graph, 0), height, integers(graph, 2))
    new.done(rows)
