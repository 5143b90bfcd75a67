"""What a process holds in memory, from Linux; None elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes in memory now."""
    return _read("VmRSS")


def anonymous() -> int | None:
    """Bytes in memory now that are no file's: what the system cannot take back."""
    return _read("RssAnon")


def peak() -> int | None:
    """Most bytes in memory since the process began, or since :func:`reset_peak`."""
    return _read("VmHWM")


def reset_peak() -> None:
    """Begin a new peak, where that is allowed."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def _read(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
