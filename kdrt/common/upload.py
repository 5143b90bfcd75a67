"""Copies from the host that wait for nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(into: Tensor, source: Tensor) -> None:
    """Copy ``source`` into ``into``, without waiting for the device.

    What CUDA copies from ordinary memory waits for all that was enqueued before, and the host with
    it. So the copy is made from pinned memory of its own, which PyTorch keeps until it is done:
    ``source`` may change at once.
    """
    if into.is_cuda and not source.is_cuda:
        source = source.pin_memory()
    into.copy_(source, non_blocking=True)


def uploaded(source: Tensor, device: torch.device) -> Tensor:
    """``source`` on ``device``: itself if it is there, or copied as :func:`upload` does."""
    if source.device == device:
        return source
    into = torch.empty_like(source, device=device)
    upload(into, source)
    return into
