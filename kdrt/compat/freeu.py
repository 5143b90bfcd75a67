"""FreeU's strengths, as its authors and diffusers' documentation recommend them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FREEU_PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "sd14": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
        "sd15": {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6},
        "sd21": {"s1": 0.9, "s2": 0.2, "b1": 1.4, "b2": 1.6},
        "sdxl": {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4},
    }
)
"""Keyword arguments of ``enable_freeu`` by family: ``pipe.enable_freeu(**FREEU_PRESETS["sd15"])``.

They are meant for FreeU by block, as diffusers has it; web UIs choose blocks by their width, so
their values do not carry over exactly."""
