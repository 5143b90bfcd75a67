"""NVIDIA's random numbers without an NVIDIA GPU: what ``torch.randn`` gives on CUDA from a seed.

The counter-based generator Philox4x32-10 (Salmon et al. 2011) numbers every value of every draw,
so it can be computed anywhere. It equals CUDA's while a GPU thread makes one value of a draw; on
small GPUs large tensors are drawn in strides and differ there from GPU to GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = float(np.float32(2.0**-32))
_ANGLE = float(np.float32(np.float32(2.3283064e-10) * np.float32(6.2831855)))


class PhiloxGenerator:
    """A sequence of standard normal draws.

    Args:
        seed: from 0 to 2⁶⁴ - 1.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next draw: float32, of ``shape``."""
        count = math.prod(shape)
        counter = np.zeros((4, count), dtype=np.uint64)
        counter[0] = self._draws
        counter[2] = np.arange(count)
        self._draws += 1
        first, second = _philox(counter, self._seed)[:2]
        # Box and Muller's transform; CUDA gives the sine to the first value of a thread.
        radius = np.sqrt(-2 * np.log(first * _UNIT + _UNIT / 2))
        values = radius * np.sin(second * _ANGLE + _ANGLE / 2)
        return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def _philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Encrypt counters ``[4, n]`` of 32 bits, held in 64, with the two words of the seed."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(_ROUNDS):
        low_product, high_product = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = np.stack(
            [
                (high_product >> _SHIFT) ^ counter[1] ^ np.uint64(key[0]),
                high_product & _MASK,
                (low_product >> _SHIFT) ^ counter[3] ^ np.uint64(key[1]),
                low_product & _MASK,
            ]
        )
        key = [(word + weyl) & 0xFFFFFFFF for word, weyl in zip(key, _WEYL, strict=True)]
    return counter
