"""Checks of single arguments: each returns the value as the type it stands for, or says in one
sentence what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from torch import Tensor

MAX_INT = 2**31 - 1
"""Of whole numbers that no narrower range is known for."""

MAX_SIDE = 16_383
"""Of an image, in pixels: WebP's limit, the lowest of the formats that are written."""

MAX_MASK_CHANGE = 256
"""Pixels by which a mask may grow, shrink or be blurred."""

MAX_IMAGES = 10_000
"""Of one prompt."""

MAX_STEPS = 10_000
"""Of a run, as in ComfyUI."""

MAX_TEXT = 50_000
"""Characters of a prompt. The longest that web UIs are given hold a few thousand."""

_SHOWN = 80
"""Characters of a wrong value in a message."""

_READ = 1_000
"""Characters of a text that are looked at for them."""


def check_int(name: str, value: object, minimum: int, maximum: int = MAX_INT) -> int:
    """``value`` as an int between both limits; NumPy's integers count, booleans do not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise InvalidRequestError(
            f"{name} must be a whole number of at least {minimum}, not {excerpt(value)}"
        )
    if int(value) > maximum:
        raise InvalidRequestError(f"{name} must be at most {maximum}, not {excerpt(value)}")
    return int(value)


def finite_or_none(value: object) -> float | None:
    """``value`` as a finite float; None for what is none, booleans and strings included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def check_finite(name: str, value: object) -> float:
    """``value`` as a finite float."""
    number = finite_or_none(value)
    if number is None:
        raise InvalidRequestError(f"{name} must be a finite number, not {excerpt(value)}")
    return number


def plain_number(value: Any) -> Any:
    """``value``, if it is a number, as Python's own int, float or bool: what NumPy and fractions
    have takes other paths through arithmetic."""
    if _is_numpy_bool(value):
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:
        return value


def _is_numpy_bool(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # whoever has such a value has imported it
    return numpy is not None and isinstance(value, numpy.bool_)


def check_number(
    name: str, value: object, maximum: float = math.inf, *, minimum: float = 0.0
) -> float:
    """``value`` as a finite float from ``minimum`` to ``maximum``."""
    number = finite_or_none(value)
    if number is None or number < minimum:
        raise InvalidRequestError(
            f"{name} must be a finite number of at least {minimum:g}, not {excerpt(value)}"
        )
    if number > maximum:
        raise InvalidRequestError(f"{name} must be at most {maximum:g}, not {excerpt(value)}")
    return number


def check_bool(name: str, value: object) -> bool:
    """``value`` as a bool; 0 and 1 count."""
    if (
        isinstance(value, bool)
        or _is_numpy_bool(value)
        or (isinstance(value, Integral) and value in (0, 1))
    ):
        return bool(value)
    raise InvalidRequestError(f"{name} must be True or False, not {excerpt(value)}")


def check_callable(name: str, value: object) -> None:
    """Refuse a ``value`` that cannot be called."""
    if not callable(value):
        raise InvalidRequestError(f"{name} must be a function, not {excerpt(value)}")


def check_int_pair(name: str, value: object) -> tuple[int, int]:
    """``value`` as two whole numbers of at least 0."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InvalidRequestError(f"{name} must be two whole numbers, not {excerpt(value)}")
    return check_int(name, value[0], 0), check_int(name, value[1], 0)


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Refuse a ``value`` that is none of the words ``known``."""
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        raise InvalidRequestError(unknown_word(name, value, words))


def unknown_word(name: str, value: object, known: Iterable[str]) -> str:
    """The message for a ``value`` that is none of the words ``known``."""
    words = tuple(known)
    return f"unknown {name} {excerpt(value)}; known: {', '.join(words)}{did_you_mean(value, words)}"


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of such a message: the word that was probably meant; empty where none is near."""
    if not isinstance(value, str) or len(value) > _SHOWN:
        return ""
    folded = {word.casefold(): word for word in known}
    near = get_close_matches(value.casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def check_mapping(name: str, value: object) -> Mapping[str, Any]:
    """``value``, None or a mapping from names, as a mapping."""
    options = {} if value is None else value
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise InvalidRequestError(f"{name} must be a mapping from names to values")
    return options


def check_texts(name: str, value: object, count: int | None = None) -> tuple[str, ...]:
    """``value``, a string or a sequence of them, as a tuple.

    With a ``count``, a single string is repeated, and a sequence must have that many.
    """
    if isinstance(value, str):
        return (check_text(name, value),) * (count or 1)
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise InvalidRequestError(
            f"{name} must be a string or a list of strings, not {excerpt(value)}"
        )
    if not value:
        raise InvalidRequestError(f"{name} is an empty list; give at least one string")
    if count is not None and len(value) != count:
        raise InvalidRequestError(
            f"{len(value)} strings in {name} for {count} prompts: give one for each, or one for all"
        )
    return tuple(check_text(name, each) for each in value)


def check_text(name: str, value: str) -> str:
    """``value``, after a look at its length and at its characters."""
    if len(value) > MAX_TEXT:
        raise InvalidRequestError(
            f"{name} is {len(value)} characters long; at most {MAX_TEXT} are allowed"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{name} holds half a character ({value[error.start]!a} at position {error.start}), "
            "as text that is not UTF-8 does; give it as UTF-8"
        ) from None
    return value


def printable(text: object) -> object:
    """Text without what a terminal would obey: a bundle may say anything of itself."""
    if not isinstance(text, str):
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse a ``tensor`` that holds no numbers of its own: sparse, nested, quantized or meta.

    Raises:
        InvalidRequestError: it is one of those.
    """
    strange = tensor.is_nested or tensor.is_meta or tensor.is_quantized
    if strange or str(tensor.layout) != "torch.strided":
        raise InvalidRequestError(
            f"{name} must be a dense tensor that holds its numbers, not a sparse, nested, "
            "quantized or meta one"
        )


def excerpt(value: object) -> str:
    """``value`` for a message: its ``repr`` in one line, cut short."""
    if isinstance(value, str | bytes):  # which may be very long
        value = value[:_READ]
    try:
        said = " ".join(repr(value).split())
    except Exception:  # Python prints no integer of more than 4300 digits, in a list neither
        bits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        said = f"{type(value).__name__}{bits}"
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
