"""What follows from inputs that rarely change is computed by a graph of its own, the rest by the
other, and both together compute what the one did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_export.dialects.invariants import split_invariants
from tests.support.graphs_of import Build, Tape, Values, graph_of, kinds, run

WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32),
    "v": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32),
}


def of(
    build: Build, inputs: Sequence[str] = ("x", "prompt"), shape: Sequence[object] = ("B", 4)
) -> ir.Model:
    model = graph_of(build, inputs, WEIGHTS)
    for value in model.graph.inputs:
        value.shape = ir.Shape(shape)
    return model


def names(values: Sequence[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]


def together(
    model: ir.Model, invariants: ir.Model, inputs: dict[str, np.ndarray]
) -> list[np.ndarray]:
    made = run(invariants, *(inputs[name] for name in names(invariants.graph.inputs)))
    given = inputs | dict(zip(names(invariants.graph.outputs), made, strict=True))
    return run(model, *(given[name] for name in names(model.graph.inputs)))


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def attention(recorder: Tape, values: Values) -> ir.Value:
    """Keys of the prompt, put to use."""
    keys = recorder.op("Relu", [recorder.op("MatMul", [values["prompt"], values["w"]])])
    queries = recorder.op("MatMul", [values["x"], values["v"]])
    return recorder.op("Mul", [queries, keys])


def test_products_of_the_prompt_are_made_apart() -> None:
    model = of(attention)
    plain = model.clone()
    invariants = split_invariants(model, ("x",))
    assert invariants is not None
    assert kinds(invariants) == ["MatMul", "Relu"]
    assert kinds(model) == ["MatMul", "Mul"]
    assert names(invariants.graph.inputs) == ["prompt"]
    assert set(invariants.graph.initializers) == {"w"}
    assert set(model.graph.initializers) == {"v"}
    (result,) = invariants.graph.outputs
    assert names(model.graph.inputs) == ["x", result.name]
    assert list(result.shape or ()) == ["B", 4]
    draw = np.random.default_rng(2)
    inputs = {name: draw.standard_normal((3, 4)).astype(np.float32) for name in ("x", "prompt")}
    assert_same(together(model, invariants, inputs), run(plain, *inputs.values()))


@pytest.mark.parametrize("varying", [(), ("prompt", "x"), ("prompt",)])
def test_where_nothing_stays_the_graph_does(varying: Sequence[str]) -> None:
    model = of(attention)
    if varying == ("prompt",):  # then it is the other product
        assert kinds(split_invariants(model, varying)) == ["MatMul"]
    else:
        assert split_invariants(model, varying) is None
        assert kinds(model) == ["MatMul", "Relu", "MatMul", "Mul"]


def test_what_has_no_products_stays() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        doubled = recorder.op("Add", [values["prompt"], values["prompt"]])
        return recorder.op("Mul", [values["x"], doubled])

    assert split_invariants(of(build), ("x",)) is None


def test_products_of_weights_alone_stay() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        both = recorder.op("MatMul", [values["w"], values["v"]])
        return recorder.op("MatMul", [values["x"], both])

    assert split_invariants(of(build, ["x"]), ("x",)) is None


def test_what_is_no_float32_is_computed_by_both() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        keys = recorder.op("MatMul", [values["prompt"], values["w"]])
        size = recorder.op("Shape", [keys])
        return recorder.op("Add", [recorder.op("Reshape", [values["x"], size]), keys])

    model = of(build)
    plain = model.clone()
    invariants = split_invariants(model, ("x",))
    assert kinds(invariants) == ["MatMul"]
    draw = np.random.default_rng(2)
    inputs = {name: draw.standard_normal((3, 4)).astype(np.float32) for name in ("x", "prompt")}
    assert_same(together(model, invariants, inputs), run(plain, *inputs.values()))


def test_a_size_that_no_input_has_cannot_be_known() -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        keys = recorder.op("MatMul", [values["prompt"], values["w"]])
        some = recorder.op("Compress", [keys, recorder.op("Cast", [values["which"]], {"to": 9})])
        return recorder.op("Mul", [values["x"], some])

    model = of(build, ["x", "prompt", "which"])
    model.graph.inputs[2].shape = ir.Shape(["n"])
    assert split_invariants(model, ("x",)) is None


OPERATORS = ("MatMul", "Add", "Mul", "Tanh", "Shaped")


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Operators, each on two of the values before it: four inputs and weights, then results."""
    count = draw(st.integers(1, 12))
    return [
        (draw(st.sampled_from(OPERATORS)), draw(st.integers(0, 3 + i)), draw(st.integers(0, 3 + i)))
        for i in range(count)
    ]


@given(program=programs(), varying=st.sampled_from([("x",), ("prompt",), ("x", "prompt")]))
def test_both_together_compute_what_the_one_did(
    program: list[tuple[str, int, int]], varying: tuple[str, ...]
) -> None:
    def build(recorder: Tape, values: Values) -> ir.Value:
        made = [values[name] for name in ("x", "prompt", "w", "v")]
        for kind, first, second in program:
            a, b = made[first], made[second]
            if kind == "Shaped":
                made.append(recorder.op("Reshape", [a, recorder.op("Shape", [b])]))
            elif kind == "Tanh":
                made.append(recorder.op("Tanh", [a]))
            elif kind == "MatMul":
                made.append(recorder.op("MatMul", [recorder.op("Tanh", [a]), b]))
            else:
                made.append(recorder.op(kind, [recorder.op("Tanh", [a]), b]))
        return recorder.op("Add", [made[-1], values["x"]])

    model = of(build, shape=(4, 4))
    plain = model.clone()
    draw = np.random.default_rng(len(program))
    inputs = {name: draw.standard_normal((4, 4)).astype(np.float32) for name in ("x", "prompt")}
    expected = run(plain, *inputs.values())
    invariants = split_invariants(model, varying)
    if invariants is None:
        assert kinds(model) == kinds(plain)
        return
    assert set(names(invariants.graph.inputs)).isdisjoint(varying)
    assert "MatMul" in kinds(invariants)
    assert_same(together(model, invariants, inputs), expected)
