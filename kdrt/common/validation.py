"""Checks of single arguments: each returns the value as the type it stands for, or says in one
sentence what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrt.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

MOST = 2**31 - 1
"""Of whole numbers that no narrower range is known for."""

MOST_SIDE = 16_383
"""Of an image, in pixels: WebP's limit, the lowest of the formats that are written."""

MOST_IMAGES = 10_000
"""Of one prompt."""

MOST_STEPS = 10_000
"""Of a run, as in ComfyUI."""

MOST_TEXT = 50_000
"""Characters of a prompt. The longest that web UIs are given hold a few thousand."""

_SHOWN = 80
"""Characters of a wrong value in a message."""


def whole(name: str, value: object, least: int, most: int = MOST) -> int:
    """``value`` as an int from ``least`` to ``most``; NumPy's integers count, booleans do not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InvalidRequest(
            f"{name} must be a whole number of at least {least}, not {shown(value)}"
        )
    if int(value) > most:
        raise InvalidRequest(f"{name} must be at most {most}, not {shown(value)}")
    return int(value)


def finite(value: object) -> float | None:
    """``value`` as a finite float; None for what is none, booleans and strings included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """``value``, if it is a number, as Python's own int, float or bool: what NumPy and fractions
    have takes other paths through arithmetic."""
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:
        return value


def amount(name: str, value: object, most: float = math.inf) -> float:
    """``value`` as a finite float from 0 to ``most``."""
    number = finite(value)
    if number is None or number < 0:
        raise InvalidRequest(f"{name} must be a finite number of at least 0, not {shown(value)}")
    if number > most:
        raise InvalidRequest(f"{name} must be at most {most:g}, not {shown(value)}")
    return number


def flag(name: str, value: object) -> bool:
    """``value`` as a bool; 0 and 1 count."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Integral) and value in (0, 1)):
        return bool(value)
    raise InvalidRequest(f"{name} must be True or False, not {shown(value)}")


def function(name: str, value: object) -> None:
    """Refuse a ``value`` that cannot be called."""
    if not callable(value):
        raise InvalidRequest(f"{name} must be a function, not {shown(value)}")


def pair(name: str, value: object) -> tuple[int, int]:
    """``value`` as two whole numbers of at least 0."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InvalidRequest(f"{name} must be two whole numbers, not {shown(value)}")
    return whole(name, value[0], 0), whole(name, value[1], 0)


def word(name: str, value: object, known: Iterable[str]) -> None:
    """Refuse a ``value`` that is none of the words ``known``."""
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        raise InvalidRequest(f"unknown {name} {shown(value)}; known: {', '.join(words)}")


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
        return (text(name, value),) * (count or 1)
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise InvalidRequest(f"{name} must be a string or a list of strings, not {shown(value)}")
    if not value:
        raise InvalidRequest(f"{name} is an empty list; give at least one string")
    if count is not None and len(value) != count:
        raise InvalidRequest(
            f"{len(value)} strings in {name} for {count} prompts: give one for each, or one for all"
        )
    return tuple(text(name, each) for each in value)


def text(name: str, value: str) -> str:
    """``value``, after a look at its length and at its characters."""
    if len(value) > MOST_TEXT:
        raise InvalidRequest(
            f"{name} is {len(value)} characters long; at most {MOST_TEXT} are allowed"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} holds half a character ({value[error.start]!a} at position {error.start}), "
            "as text that is not UTF-8 does; give it as UTF-8"
        ) from None
    return value


def printable(text: object) -> object:
    """Text without what a terminal would obey: a bundle may say anything of itself."""
    if not isinstance(text, str):
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def dense(name: str, tensor: Tensor) -> None:
    """Raises InvalidRequest: ``tensor`` has no numbers, or keeps them in a way of its own (sparse,
    nested, quantized), so that hardly anything can be asked of it."""
    strange = tensor.is_nested or tensor.is_meta or tensor.is_quantized
    if strange or str(tensor.layout) != "torch.strided":
        raise InvalidRequest(
            f"{name} must be a dense tensor that holds its numbers, not a sparse, nested, "
            "quantized or meta one"
        )


def shown(value: object) -> str:
    """``value`` for a message: its ``repr`` in one line, cut short."""
    try:
        said = " ".join(repr(value).split())
    except Exception:  # Python prints no integer of more than 4300 digits, in a list neither
        bits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        said = f"{type(value).__name__}{bits}"
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
