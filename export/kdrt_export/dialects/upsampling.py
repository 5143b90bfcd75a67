"""Convolutions of images twice as large, computed at the size they were before.

Where every pixel is repeated in both directions and a filter of three by three follows, each result
sees four different values only: two rows and two columns. So the filter becomes four filters of two
by two, one for each place in a square of results, and the repeated pixels are never made:

    row 2i of the results          a · row i − 1  +  (b + c) · row i
    row 2i + 1                     (a + b) · row i  +  c · row i + 1       of taps a, b, c

That is four ninths of the products, less than Winograd's algorithm needs in one direction, and less
memory. (Results of four filters side by side are the sub-pixel convolution of Shi et al.,
arXiv:1609.05158.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.convolutions import filters_of, sums_of_filters
from kdrt_export.dialects.graphs import (
    Replacement,
    Rows,
    constant_of,
    integers,
    is_only_for,
    made_by,
    rows_of,
)

_SUMS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
"""``[place, tap, tap of three]``: what the two taps of a row or column are the sums of."""
_NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}

MIN_CHANNELS = 64
"""In. Of fewer, putting the results side by side costs what it saves."""


def upsampling(graph: ir.Graph, image: Rows) -> int:
    """Convolutions of 3 x 3, with stride 1 and padding 1, of images exactly twice as large as
    they were. Where the size is computed and the ``image`` the graph takes cannot be halved that
    often, it may be one less, and they stay as they are."""
    rows = rows_of(graph, image)
    sites = [resize for node in graph if (resize := enlarged_by(node, rows)) is not None]
    for resize in sites:
        _transform(graph, resize)
    return len(sites)


def enlarged_by(node: ir.Node, rows: Mapping[ir.Value, Rows]) -> ir.Node | None:
    """What repeats the pixels that a convolution sees, if this pass takes it; None of others.
    ``rows``: of everything that is computed."""
    filters = filters_of(node)
    if filters is None or filters[1] < MIN_CHANNELS:
        return None
    large = node.inputs[0]
    resize = made_by(large, "Resize")
    if resize is None or large is None or not is_only_for(large, node):
        return None
    small, *others = resize.inputs
    how = {n: a.as_string() for n, a in resize.attributes.items() if n in _NEAREST}
    if how != _NEAREST or small is None:
        return None
    if len(others) == 3:  # the size it goes to is computed
        return resize if rows[small].multiple % 1 == 0 else None
    return resize if constant_of(others[-1]) == [1, 1, 2, 2] else None


def _transform(graph: ir.Graph, resize: ir.Node) -> None:
    small, ((node, _),) = resize.inputs[0], resize.outputs[0].uses()
    _, weight, *biases = node.inputs
    channels = filters_of(node)
    assert channels is not None
    new = Replacement(graph, node)

    places = list(itertools.product((0, 1), repeat=2))
    sums = np.stack([np.kron(_SUMS[row], _SUMS[column]) for row, column in places])
    each = sums_of_filters(graph, new, weight, channels, sums.reshape(4, 2, 2, -1))
    results = [
        new.op(
            "Conv", small, filters, *biases, attributes={"pads": [1 - row, 1 - column, row, column]}
        )
        for (row, column), filters in zip(places, each, strict=True)
    ]

    # Columns, then rows, side by side: ONNX Runtime moves one axis at a time fast.
    size = new.op("Shape", small, attributes={"start": 2, "end": 4})
    width = new.op("Shape", small, attributes={"start": 3, "end": 4})

    def shaped(value: ir.Value, *sizes: int | ir.Value) -> ir.Value:
        parts = [s if isinstance(s, ir.Value) else integers(graph, s) for s in sizes]
        return new.op("Reshape", value, new.op("Concat", *parts, attributes={"axis": 0}))

    squares = shaped(new.op("Concat", *results, attributes={"axis": 1}), 0, 2, 2, -1, width)
    squares = new.op("Transpose", squares, attributes={"perm": [0, 1, 3, 4, 2]})
    rows = shaped(squares, 0, 2, -1, new.op("Mul", width, integers(graph, 2)))
    rows = new.op("Transpose", rows, attributes={"perm": [0, 2, 1, 3]})
    image = new.op("Mul", size, integers(graph, 2))
    new.done(shaped(rows, 0, channels[0], image))
