"""What was freed is the system's again."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from kdrt_bench.memory import resident
from kdrt_export.freed_memory import give_back_freed

BLOCK = 64_000
"""Bytes: too small to be a mapping of its own."""
BLOCKS = 1_000


def allocates_itself() -> bool:
    """Whether memory comes from glibc, and not from an allocator that was put in its place."""
    if platform.libc_ver()[0] != "glibc":
        return False
    others = ("jemalloc", "tcmalloc", "mimalloc")
    return not any(name in Path("/proc/self/maps").read_text() for name in others)


@pytest.mark.skipif(not allocates_itself(), reason="another allocator has other habits")
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    blocks = [torch.ones(BLOCK, dtype=torch.uint8) for _ in range(BLOCKS)]
    kept = blocks[-1]  # behind all others, which stay in the process for it
    before = resident() or 0
    del blocks
    give_back_freed()
    assert before - (resident() or 0) > 0.7 * BLOCK * BLOCKS
    assert kept.all()
