"""Checks of single arguments: each returns the value as the type it stands for, or says in one
sentence what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from kdrt.errors import InvalidRequest


def whole(name: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``; NumPy's integers count, booleans do not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidRequest(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def amount(name: str, value: object) -> float:
    """``value`` as a finite float of at least 0."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number < math.inf:
        raise InvalidRequest(f"{name} must be a finite number of at least 0, not {value!r}")
    return number


def pair(name: str, value: object) -> tuple[int, int]:
    """``value`` as two whole numbers of at least 0."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InvalidRequest(f"{name} must be two whole numbers, not {value!r}")
    return whole(name, value[0], 0), whole(name, value[1], 0)


def options_of(name: str, value: object) -> Mapping[str, Any]:
    """``value``, None or a mapping from names, as a mapping."""
    options = {} if value is None else value
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise InvalidRequest(f"{name} must be a mapping from names to values")
    return options


def texts(name: str, value: object, count: int | None = None) -> tuple[str, ...]:
    """``value``, a string or a sequence of them, as a tuple.

    With a ``count``, a single string is repeated, and a sequence must have that many.
    """
    if isinstance(value, str):
        return (value,) * (count or 1)
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise InvalidRequest(f"{name} must be a string or a list of strings, not {value!r}")
    if not value:
        raise InvalidRequest(f"{name} is an empty list; give at least one string")
    if count is not None and len(value) != count:
        raise InvalidRequest(
            f"{len(value)} strings in {name} for {count} prompts: give one for each, or one for all"
        )
    return tuple(value)
