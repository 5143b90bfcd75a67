"""One projection with a split result, and one for each part, are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt_export.dialects.split_projections import split_projections
from tests.support.graphs_of import Tape, Values, graph_of, kinds, run


def projection(
    sizes: list[int], width: int, *, bias: bool, axis: int = -1, also: bool = False
) -> ir.Model:
    draw = np.random.default_rng(sum(sizes) * width)
    weights: dict[str, np.ndarray] = {
        "w": draw.standard_normal((sum(sizes), width), np.float32),
        "b": draw.standard_normal(sum(sizes), np.float32),
        "sizes": np.array(sizes, np.int64),
    }

    def build(recorder: Tape, values: Values) -> Sequence[ir.Value]:
        turned = recorder.op("Transpose", [values["w"]], {"perm": [1, 0]})
        y = recorder.op("MatMul", [values["x"], turned])
        if bias:
            y = recorder.op("Add", [values["b"], y])
        parts = recorder.op_multi_out(
            "Split", [y, values["sizes"]], {"axis": axis}, num_outputs=len(sizes)
        )
        return [*parts, recorder.op("Neg", [y])] if also else parts

    return graph_of(build, ["x"], weights)


@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=3), width=st.integers(1, 6))
def test_equals_the_whole(bias: bool, sizes: list[int], width: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, width), np.float32)
    whole, apart = (projection(sizes, width, bias=bias) for _ in range(2))
    assert split_projections(apart.graph) == 1
    assert kinds(apart).count("MatMul") == len(sizes)
    for found, expected in zip(run(apart, x), run(whole, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_stored_weight_keeps_its_name() -> None:
    model = projection([2, 3], 4, bias=True)
    split_projections(model.graph)
    assert {"w", "b"} <= set(model.graph.initializers)


@pytest.mark.parametrize("change", [{"axis": 1}, {"also": True}])
def test_other_splits_stay(change: dict[str, Any]) -> None:
    model = projection([2, 1] if "axis" in change else [2, 3], 4, bias=False, **change)
    before = kinds(model)
    assert split_projections(model.graph) == 0
    assert kinds(model) == before
