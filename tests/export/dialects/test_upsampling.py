"""Convolutions of repeated pixels are computed at the size before, and equal what they replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt_export.dialects import upsampling as module
from kdrt_export.dialects.graphs import Rows
from kdrt_export.dialects.upsampling import upsampling
from kdrt_export.dialects.winograd import winograd
from tests.support.graphs_of import SAME, Tape, Values, graph_of, kinds, off, run, weights_of

NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
ANY = Rows(64, 1)
"""Images of any size."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHANNELS", 1)


def enlarged(
    channels: int,
    out: int,
    *,
    bias: bool = True,
    resize: dict[str, Any] | None = None,
    factors: tuple[float, ...] = (1, 1, 2, 2),
    **attributes: Any,
) -> ir.Model:
    """An image made larger, and a convolution of it."""
    attributes = {**SAME, **attributes}
    convolution = weights_of(channels, out, bias=bias, kernel=attributes["kernel_shape"])

    def build(recorder: Tape, values: Values) -> ir.Value:
        large = recorder.op("Resize", [values["x"], None, values["factors"]], resize or NEAREST)
        return recorder.op("Conv", [large, *(values[name] for name in convolution)], attributes)

    return graph_of(build, ["x"], {**convolution, "factors": np.array(factors, np.float32)})


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 16]),
    out=st.sampled_from([1, 5, 16]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bias=st.booleans(),
)
def test_equals_the_convolution(
    batch: int, channels: int, out: int, height: int, width: int, bias: bool
) -> None:
    model = enlarged(channels, out, bias=bias)
    plain = model.clone()
    x = np.random.default_rng(height).standard_normal((batch, channels, height, width), np.float32)
    (expected,) = run(plain, x)
    assert upsampling(model.graph, ANY) == 1
    (found,) = run(model, x)
    assert found.shape == expected.shape == (batch, out, 2 * height, 2 * width)
    assert off(found, expected) <= 1e-6


def test_nothing_is_made_larger_before_it_is_multiplied() -> None:
    model = enlarged(16, 16)
    upsampling(model.graph, ANY)
    used = {value for node in model.graph for value in node.inputs}
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    assert len(convolutions) == 4
    assert {node.inputs[0].name for node in convolutions} == {"x"}
    assert all(n.outputs[0] not in used for n in model.graph if n.op_type == "Resize")


def test_a_factor_that_is_put_together_is_read() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        factors = recorder.op("Concat", [values["ones"], values["twos"]], {"axis": 0})
        large = recorder.op("Resize", [values["x"], None, factors], NEAREST)
        return recorder.op("Conv", [large, values["w"]], SAME)

    weights = {
        "w": np.ones((2, 2, 3, 3), np.float32),
        "ones": np.ones(2, np.float32),
        "twos": np.full(2, 2, np.float32),
    }
    assert upsampling(graph_of(build, ["x"], weights).graph, ANY) == 1


@pytest.mark.parametrize(
    "others",
    [
        {"resize": {**NEAREST, "mode": "linear"}},
        {"resize": {**NEAREST, "nearest_mode": "ceil"}},
        {"factors": (1, 1, 3, 3)},
        {"factors": (1, 1, 2, 1)},
        {"strides": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0]},
    ],
)
def test_others_stay_as_they_are(others: dict[str, Any]) -> None:
    model = enlarged(4, 4, **others)
    assert upsampling(model.graph, ANY) == 0
    assert kinds(model) == ["Resize", "Conv"]


def there_and_back(halvings: int) -> ir.Model:
    """An image that is halved and enlarged to the sizes it had, as a UNet does it."""

    def build(recorder: Tape, values: Values) -> ir.Value:
        sizes, hidden = [], values["x"]
        for _ in range(halvings):
            sizes.append(recorder.op("Shape", [hidden]))
            hidden = recorder.op("Conv", [hidden, values["w"]], {**SAME, "strides": [2, 2]})
        for size in reversed(sizes):
            large = recorder.op("Resize", [hidden, None, None, size], NEAREST)
            hidden = recorder.op("Conv", [large, values["w"]], SAME)
        return hidden

    return graph_of(build, ["x"], weights_of(2, 2, bias=False))


@given(halvings=st.integers(1, 3), height=st.integers(1, 3), width=st.integers(1, 3))
def test_a_size_that_is_computed_is_twice_as_large_if_it_was_halved(
    halvings: int, height: int, width: int
) -> None:
    model = there_and_back(halvings)
    plain, multiple = model.clone(), 2**halvings
    shape = (1, 2, multiple * height, multiple * width)
    x = np.random.default_rng(height).standard_normal(shape, np.float32)
    assert upsampling(model.graph, Rows(64, multiple)) == halvings
    assert not any(node.outputs[0].uses() for node in model.graph if node.op_type == "Resize")
    assert off(*run(model, x), *run(plain, x)) <= 1e-6


def test_a_size_that_is_computed_may_be_odd_and_stays() -> None:
    assert upsampling(there_and_back(1).graph, ANY) == 0
    # Six rows are three, which are two and not one and a half: only those become exactly twice.
    assert upsampling(there_and_back(2).graph, Rows(64, 2)) == 1
    assert upsampling(there_and_back(2).graph, Rows(64, 6)) == 1


def test_what_others_read_too_is_still_made() -> None:
    def build(recorder: Tape, values: Values) -> Sequence[ir.Value]:
        large = recorder.op("Resize", [values["x"], None, values["factors"]], NEAREST)
        return [recorder.op("Conv", [large, values["w"]], SAME), recorder.op("Relu", [large])]

    weights = {
        "w": np.ones((2, 2, 3, 3), np.float32),
        "factors": np.array([1, 1, 2, 2], np.float32),
    }
    assert upsampling(graph_of(build, ["x"], weights).graph, ANY) == 0


def test_winograd_leaves_these_alone() -> None:
    model = enlarged(256, 256)
    assert winograd(model.graph, Rows(64, 1)) == 0
    assert upsampling(model.graph, ANY) == 1


def test_few_channels_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHANNELS", 16)
    assert upsampling(enlarged(15, 16).graph, ANY) == 0
    assert upsampling(enlarged(16, 15).graph, ANY) == 1
