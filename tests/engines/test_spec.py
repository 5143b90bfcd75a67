"""Symbolic shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_engines import EngineSpec, ShapeError, TensorSpec
from kdrt_engines.spec import part_of

SPEC = EngineSpec(
    (TensorSpec("x", "float32", ("B", 4, "h", "w")), TensorSpec("t", "float32", ("B",))),
    (TensorSpec("y", "float32", ("B", 3, "8*h", "8*w")),),
)


@given(b=st.integers(1, 9), h=st.integers(1, 200), w=st.integers(1, 200))
def test_symbols_and_multiples_resolve(b: int, h: int, w: int) -> None:
    dims = {"B": b, "h": h, "w": w}
    assert SPEC.input("x").resolve(dims) == (b, 4, h, w)
    assert SPEC.outputs[0].resolve(dims) == (b, 3, 8 * h, 8 * w)


@given(h=st.integers(1, 200), level=st.integers(0, 6))
def test_what_strides_leave_is_rounded_up_once(h: int, level: int) -> None:
    """Halving and rounding up ``level`` times is one division, rounded up."""
    left = h
    for _ in range(level):
        left = (left + 1) // 2
    tensor = TensorSpec("x", "float32", (part_of("h", 2**level),))
    assert tensor.resolve({"h": h}) == (left,)
    assert tensor.symbols() == ("h",)


def test_a_part_is_written_as_in_a_manifest() -> None:
    assert part_of("h", 1) == "h"
    assert part_of("h", 4) == "ceil(h/4)"


def test_symbols_are_listed_once_in_order() -> None:
    assert SPEC.symbols() == ("B", "h", "w")
    assert SPEC.outputs[0].symbols() == ("B", "h", "w")
    assert SPEC.has_input("t")
    assert not SPEC.has_input("y")


@pytest.mark.parametrize(
    "size", ["h*8", "8h", "h+1", "", "8 * h", "ceil(h/0)", "ceil(h)", "h/4", "8*ceil(h/4)"]
)
def test_what_is_not_a_size(size: str) -> None:
    with pytest.raises(ShapeError, match="is not a size: write a symbol"):
        TensorSpec("x", "float32", (size,)).resolve({"h": 2})


def test_a_missing_symbol() -> None:
    with pytest.raises(ShapeError, match="no size was given for 'w' of the tensor 'x'"):
        SPEC.input("x").resolve({"B": 1, "h": 2})
