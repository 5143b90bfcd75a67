"""Memory that was freed, and that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed() -> None:
    """Give what was freed back to the system, where the C library can (glibc's).

    By itself it does so only with what lies behind all blocks in use: of a network's weights that
    can be gigabytes less than all.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
