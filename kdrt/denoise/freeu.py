"""FreeU's strengths, as its authors and diffusers' documentation recommend them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError

FreeU = tuple[float, float, float, float]
"""b1, b2, s1, s2: factors on the backbone and on the skips of the first two up blocks."""

FREEU_OFF: FreeU = (1.0, 1.0, 1.0, 1.0)
"""At which FreeU is exactly the identity."""

FREEU_PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "sd14": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
        "sd15": {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6},
        "sd21": {"s1": 0.9, "s2": 0.2, "b1": 1.4, "b2": 1.6},
        "sdxl": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
    }
)
"""By family; keyword arguments of the ``enable_freeu`` in :mod:`kdrt.compat`.

They are meant for FreeU by block, as diffusers has it; web UIs choose blocks by their width, so
their values do not carry over exactly."""


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
