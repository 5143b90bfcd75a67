"""Sizes in diffusers' configurations."""

from __future__ import annotations

from collections.abc import Sequence


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, where a configuration may give one number for both."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)
