"""The scratch memory of engines: what they need for activations while they run."""

from __future__ import annotations

import weakref
from typing import Protocol

import torch
from torch import Tensor


class ScratchUser(Protocol):
    """Whoever computes in the block."""

    def use_scratch(self, block: Tensor) -> None:
        """Compute in ``block`` from now on."""
        ...


class ScratchMemory:
    """One block for all networks on a device, as large as the largest needs.

    Networks run one after the other on one stream, so each may overwrite what the one before left.
    The block grows when a binding needs more, and every living binding then gets the new one.
    Captured CUDA graphs keep the old block (see :meth:`Binding.workspace`), so they stay valid.

    Args:
        device: where the block lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.block = torch.empty(0, dtype=torch.uint8, device=device)
        self._users: weakref.WeakSet[ScratchUser] = weakref.WeakSet()

    def share(self, user: ScratchUser, size: int) -> None:
        """Give ``user`` the block, enlarged to ``size`` bytes if it is smaller."""
        self._users.add(user)
        if size > self.block.numel():
            self.block = torch.empty(size, dtype=torch.uint8, device=self._device)
            for each in self._users:
                each.use_scratch(self.block)
        else:
            user.use_scratch(self.block)
