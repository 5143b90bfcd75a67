"""The seeds there are, and those of a batch."""

from __future__ import annotations

SEEDS = 2**64
"""How many seeds there are, from 0 on. ComfyUI draws from all of them, web UIs from half."""


def counted(first: int, count: int) -> tuple[int, ...]:
    """``count`` seeds from ``first`` on; after the last comes 0."""
    return tuple((first + index) % SEEDS for index in range(count))
