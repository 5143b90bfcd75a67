"""Pages of mapped files, given back as soon as they are read.

A file that is mapped stays in a process page by page as it is read, until all of it is unmapped.
A network that is converted tensor by tensor from one would so end up in memory beside the whole
file.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

_MADV_PAGEOUT = 21
"""Of Linux: take these pages out of memory. Nothing is lost by it, whatever they hold."""


def give_back(tensor: torch.Tensor) -> None:
    """Take the pages of a CPU tensor out of memory, where the system can; they are read again if
    the tensor is used again. One that PyTorch allocated stays: it would go to swap."""
    # PyTorch can resize what it allocated itself, and no mapped file.
    if sys.platform != "linux" or tensor.untyped_storage().resizable():
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        # Advice: a kernel that does not know it refuses, and the pages stay.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT
        )
