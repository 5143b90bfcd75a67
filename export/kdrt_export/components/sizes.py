"""Numbers in diffusers' configurations, which people write by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdrt.common.validation import finite_or_none
from kdrt_export.errors import UnsupportedModelError

_LARGEST = 16_384


def sides(size: object) -> tuple[int, int]:
    """Height and width, where a configuration may give one number for both.

    Raises:
        UnsupportedModelError: it is something else.
    """
    is_pair = isinstance(size, Sequence) and not isinstance(size, str)
    both: list[Any] = list(size) if is_pair else [size, size]  # type: ignore[call-overload]
    if len(both) != 2 or not all(type(side) is int and 1 <= side <= _LARGEST for side in both):
        raise UnsupportedModelError(
            f"sample_size must be a whole number from 1 to {_LARGEST}, or two of them, in the "
            f"model's config.json, not {size!r}"
        )
    height, width = both
    return height, width


def positive(name: str, value: object) -> float:
    """A number above 0.

    Raises:
        UnsupportedModelError: it is something else.
    """
    number = finite_or_none(value)
    if number is None or number <= 0:
        raise UnsupportedModelError(
            f"{name} must be a number above 0 in the model's config.json, not {value!r}"
        )
    return number
