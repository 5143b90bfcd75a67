"""Memory that is free, and the one sentence for when it ran out."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from kdrt.errors import OutOfMemoryError
from kdrt_engines.errors import is_out_of_memory

if TYPE_CHECKING:
    import torch

_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says what a container may have: control groups of version 2, and of version 1."""


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that are free on ``cpu`` or a CUDA device, those that PyTorch keeps for itself
    included; None where there is no such device."""
    if not str(device).startswith("cuda"):
        available = int(psutil.virtual_memory().available)
        limit = _container_limit()
        # Others in the container may have some of it too, so it is the most that can be left.
        return available if limit is None else min(available, limit - resident_memory())
    import torch

    if not torch.cuda.is_available():
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def whole_memory() -> int:
    """Bytes of this machine's memory, or of what its container may have."""
    total, limit = int(psutil.virtual_memory().total), _container_limit()
    return total if limit is None else min(total, limit)


def obtainable_memory() -> int:
    """Bytes that this process can have on the CPU at most: what is free, what it holds already and
    may use again, and swap."""
    had = psutil.virtual_memory().available + resident_memory() + psutil.swap_memory().free
    limit = _container_limit()
    return int(had) if limit is None else min(int(had), limit)


def _container_limit() -> int | None:
    """Bytes that all processes of this container may have; None where none is set."""
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max" in it
            return int(file.read_text())
    return None


def resident_memory() -> int:
    """Bytes of the machine's memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def as_told(error: BaseException) -> BaseException:
    """The error that :func:`raise_if_out_of_memory` would raise, else the same one."""
    try:
        if isinstance(error, Exception):
            raise_if_out_of_memory(error)
    except OutOfMemoryError as clearer:
        return clearer
    return error


def raise_if_out_of_memory(error: Exception, free: Callable[[], object] = lambda: None) -> None:
    """Raises OutOfMemoryError: that is what ``error`` means. ``free`` has freed what can be made
    again by then, and what the failed work had made is free too."""
    if not is_out_of_memory(error):
        return
    traceback.clear_frames(error.__traceback__)
    free()
    if isinstance(error, OutOfMemoryError):
        raise error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise OutOfMemoryError(
        f"memory ran out ({reason}): make fewer or smaller images at a time, call "
        "pipe.vae.enable_tiling(), load with low_vram=True, or end other programs"
    ) from error
