"""Pages of a mapped file that have been read are given back, and can be read again."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrt_export.sources.mapped_pages import give_back
from kdrt_export.sources.weight_files import read_tensors

MEGABYTES = 16


def mapped_bytes() -> int:
    """Bytes of files in the memory of this process, of a file system in memory too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssFile", "RssShmem")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def takes_advice() -> bool:
    """Whether this system takes pages out of memory when told so."""
    if sys.platform != "linux":
        return False
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(21)  # MADV_PAGEOUT
        except OSError:
            return False
    return True


@pytest.mark.skipif(not takes_advice(), reason="this system does not take the advice")
def test_pages_that_were_read_leave_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    expected = torch.arange(MEGABYTES * 250_000, dtype=torch.int32)
    save_file({"weight": expected}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not on the disk yet cannot leave
    weight = read_tensors(path)["weight"]
    assert torch.equal(weight, expected)
    before = mapped_bytes()
    give_back(weight)
    assert before - mapped_bytes() > 0.8 * weight.nbytes
    assert torch.equal(weight, expected), "they are read again"


def test_what_is_in_no_file_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(2_000_000, dtype=torch.float16)
    before = tensor.clone()
    monkeypatch.setattr(ctypes, "CDLL", None)  # no advice is given
    give_back(tensor)
    assert torch.equal(tensor, before)
