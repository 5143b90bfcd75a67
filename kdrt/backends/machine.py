"""What of this machine decides whether a derived file suits it, and whether it can be made."""

from __future__ import annotations

import platform
import shutil
from functools import cache
from pathlib import Path

from kdrt.common.memory import free_memory


@cache
def processor() -> str:
    """What decides which kernels are used: the instruction sets, as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(flags.split()))}"


def missing_resources(source: Path, memory: float, disk: float) -> str | None:
    """The memory or disk space that work on a network needs and this machine lacks; None if there
    is enough.

    Args:
        source: a file of the network; all that is beside it counts as weights.
        memory: bytes that the work needs for a byte of weights.
        disk: the same, of disk.
    """
    weights = sum(file.stat().st_size for file in source.parent.iterdir())
    free = free_memory("cpu")
    if free is not None and free < memory * weights:
        return f"that takes about {memory * weights / 1e6:,.0f} MB of memory"
    if shutil.disk_usage(source).free < disk * weights:
        return f"that takes about {disk * weights / 1e6:,.0f} MB of disk"
    return None
