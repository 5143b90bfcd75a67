"""Values of a request as text: what is typed on a command line and stored in an image.

Each form reads what it writes, and what people type besides: ``0.3:5.4`` and ``0.3 to 5.4``. It
writes neither commas nor colons, at which readers of an image's text split it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class TextForm:
    """How a value is written as text.

    Attributes:
        metavar: what stands for it in a command's help.
        read: from text to value. Raises ValueError.
        write: from value to text.
        example: of what can be typed.
        meaning: the value in words, for errors.
    """

    metavar: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    example: str = ""
    meaning: str = ""


def number_text(value: float) -> str:
    """The shortest text that is read as the same number: ``5``, ``0.1``."""
    return repr(value).removesuffix(".0")


def scalar_text(value: object) -> str:
    """An option's value: a number, a word, True, False or None."""
    return number_text(value) if type(value) is float else str(value)


def read_scalar(text: str) -> Any:
    """A switch, a number, or a word as in ``solver_type=heun``."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _read_numbers(text: str) -> list[float]:
    return [float(number) for number in _parts(text)]


def _read_range(text: str) -> tuple[float, float]:
    low, high = (float(number) for number in re.split(r":| to ", text))
    return low, high


def _write_range(value: Sequence[float]) -> str:
    return " to ".join(map(number_text, value))


def _read_size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in re.split(r"[x×X]", text))
    return height, width


def _write_size(value: Sequence[int]) -> str:
    return f"{value[1]}x{value[0]}"


def _read_point(text: str) -> tuple[int, int]:
    top, left = (int(number) for number in _parts(text))
    return top, left


def _read_freeu(text: str) -> tuple[float, ...] | str:
    if len(_parts(text)) == 1:
        return text
    b1, b2, s1, s2 = (float(number) for number in _parts(text))
    return b1, b2, s1, s2


def _write_freeu(value: Sequence[float] | str) -> str:
    return value if isinstance(value, str) else _write_numbers(value)


def _write_numbers(values: Sequence[float]) -> str:
    return " ".join(map(number_text, map(float, values)))


def _read_pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError
    return name, read_scalar(value)


def _write_pair(pair: tuple[str, object]) -> str:
    return f"{pair[0]}={scalar_text(pair[1])}"


def _read_image_scale(text: str) -> Any:
    """``0.6``, or parts as ``up.block_0=0/1/0 mid=0.5``."""
    if "=" not in text:
        return float(text)
    scale: dict[str, Any] = {}
    for part in _parts(text):
        name, _, value = part.partition("=")
        numbers = [float(number) for number in value.split("/")]
        owner, dot, block = name.partition(".")
        into = scale
        if dot and owner not in ("down", "up"):  # an adapter's part
            into = scale.setdefault(owner, {})
            name = block
        if not name or not isinstance(into, dict) or name in into:
            raise ValueError
        into[name] = numbers if len(numbers) > 1 else numbers[0]
    return scale


def _write_image_scale(value: float | Mapping[str, Any]) -> str:
    if not isinstance(value, Mapping):
        return number_text(float(value))
    return " ".join(_scale_parts(value, ""))


def _scale_parts(scale: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in scale.items():
        if isinstance(value, Mapping):
            yield from _scale_parts(value, f"{prefix}{name}.")
        else:
            numbers = value if isinstance(value, Sequence) else [value]
            yield f"{prefix}{name}={'/'.join(number_text(float(number)) for number in numbers)}"


def _parts(text: str) -> list[str]:
    return re.split(r"\s*,\s*|\s+", text.strip())


def _unreadable(text: str) -> Any:
    raise ValueError


def _given(value: object) -> str:
    return "given"


def pairs(example: str) -> TextForm:
    """Options by name; each is a word of its own."""
    return TextForm("NAME=VALUE", _read_pair, _write_pair, example, "NAME=VALUE")


def numbers(metavar: str, example: str) -> TextForm:
    """A grid."""
    return TextForm(metavar, _read_numbers, _write_numbers, example, "numbers")


RANGE = TextForm("LO:HI", _read_range, _write_range, "0.3:5.4", "two noise levels")
SIZE = TextForm("WxH", _read_size, _write_size, "1024x768", "width and height")
"""A size is (height, width) in Python, and WIDTHxHEIGHT in text, as everywhere."""
POINT = TextForm("TOP,LEFT", _read_point, _write_numbers, "0,64", "two whole numbers")
FREEU = TextForm("FAMILY|B1,B2,S1,S2", _read_freeu, _write_freeu, "1.3,1.4,0.9,0.2", "four numbers")
IMAGE_SCALE = TextForm(
    "SCALE", _read_image_scale, _write_image_scale, "0.6 or up.block_0=0/1/0,mid=0.5", "a scale"
)
IMAGE_FILES = TextForm("FILE[:name=NAME]", _unreadable, _given)
IMAGE_FILE = TextForm("FILE", _unreadable, _given)
CONTROL_FILE = TextForm("FILE[:OPTIONS]", _unreadable, _given)
REGION = TextForm("MASK[:WEIGHT]=PROMPT", _unreadable, _given)
LATENTS_FILE = TextForm("FILE", _unreadable, _given)
"""What an image's text cannot hold: the value itself cannot be stored."""
