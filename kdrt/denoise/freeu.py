"""FreeU's strengths, as its authors and diffusers' documentation recommend them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kdrt.common.validation import excerpt, finite_or_none
from kdrt.errors import InvalidRequestError

FreeU = tuple[float, float, float, float]
"""b1, b2, s1, s2: factors on the backbone and on the skips of the first two up blocks."""

FREEU_OFF: FreeU = (1.0, 1.0, 1.0, 1.0)
"""At which FreeU is exactly the identity."""

_MAX = 1000
"""Far beyond what is of any use, and well within the range of float32."""

FREEU_PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "sd14": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
        "sd15": {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6},
        "sd21": {"s1": 0.9, "s2": 0.2, "b1": 1.4, "b2": 1.6},
        "sdxl": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
    }
)
"""FreeU's recommended factors by family, as keyword arguments of ``enable_freeu`` in
:mod:`kdrt.compat`.

They are for FreeU by block, as in diffusers. Web UIs choose blocks by their width, so their values
do not carry over exactly."""


def preset(name: str) -> FreeU:
    """The strengths of a family.

    Raises:
        InvalidRequestError: no family is called that.
    """
    if name not in FREEU_PRESETS:
        raise InvalidRequestError(
            f"FreeU has no preset {excerpt(name)}; it has {', '.join(FREEU_PRESETS)}, or give four "
            "numbers: b1, b2, s1, s2"
        )
    found = FREEU_PRESETS[name]
    return found["b1"], found["b2"], found["s1"], found["s2"]


def check_freeu(name: str, value: object) -> FreeU:
    """``value``, four numbers or the name of a :func:`preset`, as strengths.

    Raises:
        InvalidRequestError: it is something else, or too large.
    """
    if isinstance(value, str):
        return preset(value)
    numbers = value if isinstance(value, Sequence) and len(value) == 4 else ()
    factors = [n for n in map(finite_or_none, numbers) if n is not None and abs(n) <= _MAX]
    if len(factors) != 4:
        raise InvalidRequestError(
            f"{name} must be four finite numbers (b1, b2, s1, s2) of at most {_MAX}, not "
            f"{excerpt(value)}"
        )
    b1, b2, s1, s2 = factors
    return b1, b2, s1, s2
