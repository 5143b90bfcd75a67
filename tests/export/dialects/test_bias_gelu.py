"""A bias and GELU in one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_export.dialects.bias_gelu import bias_gelu
from tests.support.graphs_of import Tape, Values, graph_of, kinds, run


def biased(width: int, **gelu: str) -> ir.Model:
    bias = np.random.default_rng(width).standard_normal(width, np.float32)

    def build(recorder: Tape, values: Values) -> ir.Value:
        summed = recorder.op("Add", [values["b"], values["x"]])
        return recorder.op("Gelu", [summed], gelu)

    return graph_of(build, ["x"], {"b": bias})


@given(width=st.integers(1, 17))
def test_equals_both(width: int) -> None:
    x = 3 * np.random.default_rng(1).standard_normal((2, 5, width), np.float32)
    apart, fused = biased(width), biased(width)
    assert bias_gelu(fused.graph) == 1
    assert kinds(fused) == ["BiasGelu"]
    np.testing.assert_allclose(run(fused, x)[0], run(apart, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["tanh"])
def test_only_the_exact_one(form: str) -> None:
    model = biased(4, approximate=form)
    assert bias_gelu(model.graph) == 0
    assert kinds(model) == ["Add", "Gelu"]
