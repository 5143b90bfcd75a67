"""Convolutions by Winograd's algorithm are the convolutions they replace."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt_export.dialects import winograd as module
from kdrt_export.dialects.convolutions import TAPS
from kdrt_export.dialects.graphs import Rows
from kdrt_export.dialects.winograd import ROWS, transforms, winograd
from tests.support.graphs_of import SAME, Tape, Values, graph_of, kinds, off, run, weights_of

USUAL = Rows(64, 1)


def convolution(channels: int, out: int, *, bias: bool = True, **attributes: Any) -> ir.Model:
    attributes = {**SAME, **attributes}
    weights = weights_of(channels, out, bias=bias, kernel=attributes["kernel_shape"])
    names = ["x", *weights]
    return graph_of(
        lambda recorder, values: recorder.op("Conv", [values[name] for name in names], attributes),
        ["x"],
        weights,
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHANNELS", (16, 16))


@given(
    filters=st.lists(st.floats(-1, 1), min_size=TAPS, max_size=TAPS),
    values=st.lists(st.floats(-1, 1), min_size=ROWS + TAPS - 1, max_size=ROWS + TAPS - 1),
)
def test_six_products_give_the_four_results(filters: list[float], values: list[float]) -> None:
    results, taps, inputs = transforms()
    assert (results.shape, taps.shape, inputs.shape) == ((4, 6), (6, 3), (6, 6))
    found = results @ ((taps @ filters) * (inputs @ values))
    np.testing.assert_allclose(found, np.correlate(values, filters), atol=1e-13)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([16, 48]),
    out=st.sampled_from([16, 32]),
    height=st.integers(1, 13),
    width=st.integers(1, 9),
    bias=st.booleans(),
)
def test_equals_the_convolution(
    batch: int, channels: int, out: int, height: int, width: int, bias: bool
) -> None:
    model = convolution(channels, out, bias=bias)
    plain = model.clone()
    x = np.random.default_rng(height).standard_normal((batch, channels, height, width), np.float32)
    (expected,) = run(plain, x)
    assert winograd(model.graph, USUAL) == 1
    (found,) = run(model, x)
    assert found.shape == expected.shape
    assert off(found, expected) <= 2e-6


def test_is_as_near_to_the_exact_result_as_documented() -> None:
    model = convolution(256, 256)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1, 256, 32, 32), np.float32)
    weights = model.graph.initializers
    exact = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(),
        torch.from_numpy(weights["w"].const_value.numpy()).double(),
        torch.from_numpy(weights["b"].const_value.numpy()).double(),
        padding=1,
    ).numpy()
    winograd(model.graph, USUAL)
    (found,) = run(model, x)
    assert off(found, exact) <= 1e-6


def test_nothing_is_cut_off_where_rows_come_in_fours() -> None:
    model = convolution(16, 16)
    x = np.random.default_rng(0).standard_normal((1, 16, 12, 5), np.float32)
    (expected,) = run(model.clone(), x)
    winograd(model.graph, Rows(64, 8))
    assert "Slice" not in kinds(model)
    np.testing.assert_allclose(run(model, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "out", "attributes"),
    [
        (16, 16, {"strides": [2, 2]}),
        (16, 16, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (16, 16, {"pads": [0, 0, 0, 0]}),
        (16, 16, {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0]}),
        (4, 16, {}),
        (16, 4, {}),
        (24, 16, {}),
    ],
)
def test_others_stay_as_they_are(channels: int, out: int, attributes: dict[str, Any]) -> None:
    model = convolution(channels, out, **attributes)
    assert winograd(model.graph, USUAL) == 0
    assert kinds(model) == ["Conv"]


def test_few_rows_are_not_worth_it() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        y = values["x"]
        for _ in range(2):
            y = recorder.op("Conv", [y, values["w"]], SAME)
            y = recorder.op("Conv", [y, values["w"]], {**SAME, "strides": [2, 2]})
        return recorder.op("Resize", [y, None, values["twice"]])

    weights = {
        "w": np.zeros((16, 16, 3, 3), np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
    }
    # Of the two with stride 1 the first sees 63 rows, the second 31.
    assert winograd(graph_of(build, ["x"], weights).graph, Rows(63, 1)) == 1
