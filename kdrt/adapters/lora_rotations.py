"""Kinds of LoRAs that rotate a weight: OFT and BOFT, as kohya and LyCORIS have them and as peft.

A rotation comes from a skew-symmetric matrix by Cayley's formula. A scale leads from the identity
to it, and likewise from 1 to the factors of rows beside it, so that 0 is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.lora_layer import Layer, any_zero


@dataclass(frozen=True)
class OftLayer(Layer):
    """Blocks of rows, each rotated (Qiu et al. 2023, arXiv:2306.07280; LyCORIS' Diag-OFT).

    Attributes:
        blocks: ``[n, b, b]``, whose skew-symmetric parts generate the rotations.
        rescale: a factor for each row, ``[out]``, or None.
        limit: the largest norm of all generators together; 0 is none.
    """

    kind = "OFT"
    blocks: Tensor
    rescale: Tensor | None = None
    limit: float = 0.0

    def fits(self, shape: Sequence[int]) -> bool:
        count, size = self.blocks.shape[-3:-1]
        return len(shape) > 1 and count * size == shape[0]

    @property
    def size_text(self) -> str:
        count, size = self.blocks.shape[-3:-1]
        return f"{count} blocks of {size} rows"

    @property
    def changes_nothing(self) -> bool:
        factors = self.rescale
        return any_zero(_skew(self.blocks)) and (factors is None or any_zero(factors.float() - 1))

    def change(self, base: Tensor, scale: float) -> Tensor:
        generators = _skew(self.blocks)
        norm = float(generators.norm()) + 1e-8
        if 0 < self.limit < norm:
            generators = generators * (self.limit / norm)
        rows = self._rotated(base.flatten(1), _partly(_cayley(generators), scale))
        if self.rescale is not None:
            rows = rows * (1 + scale * (self.rescale.float() - 1)).unsqueeze(1)
        return rows.reshape(base.shape) - base

    def _rotated(self, rows: Tensor, rotations: Tensor) -> Tensor:
        blocks = rows.reshape(*rotations.shape[:2], -1)
        return torch.einsum("nba,nbi->nai", rotations, blocks).flatten(0, 1)


@dataclass(frozen=True)
class BoftLayer(OftLayer):
    """Rows rotated in several stages, as a butterfly (Liu et al. 2023, arXiv:2311.06243).

    ``blocks`` is ``[m, n, b, b]``: stage i mixes rows within ``2^i · b``.
    """

    kind = "BOFT"

    def fits(self, shape: Sequence[int]) -> bool:
        stages, _, size, _ = self.blocks.shape
        return super().fits(shape) and shape[0] % (size << (stages - 1)) == 0

    @property
    def size_text(self) -> str:
        return f"{len(self.blocks)} stages of {super().size_text}"

    def _rotated(self, rows: Tensor, rotations: Tensor) -> Tensor:
        for stage, rotation in enumerate(rotations):
            rows = _butterfly(rows, rotation, stage)
        return rows


@dataclass(frozen=True)
class InputOftLayer(Layer):
    """Blocks of inputs, each rotated, as peft and OneTrainer have OFT.

    Attributes:
        generators: the upper triangles of skew-symmetric matrices, ``[n, b·(b-1)/2]``; one is for
            all blocks.
        terms: of the series in place of Cayley's formula; None is the formula itself.
        kernels_turned_back: whether convolutions are rotated the other way round, as in
            OneTrainer, which turns their kernels in place of their inputs.
    """

    kind = "OFT"
    generators: Tensor
    terms: int | None = 5
    kernels_turned_back: bool = False

    @property
    def size(self) -> int:
        """Inputs of one block."""
        return block_size(self.generators.shape[1])

    def fits(self, shape: Sequence[int]) -> bool:
        if len(shape) < 2:
            return False
        blocks, rest = divmod(math.prod(shape[1:]), self.size)
        return not rest and len(self.generators) in (1, blocks)

    @property
    def size_text(self) -> str:
        return f"{len(self.generators)} blocks of {self.size} inputs"

    @property
    def changes_nothing(self) -> bool:
        return self.terms == 1 or any_zero(self.generators)  # of the series 1 + 2Q + …

    def change(self, base: Tensor, scale: float) -> Tensor:
        size = self.size
        generators = self.generators.float()
        upper = generators.new_zeros(len(generators), size, size)
        rows, columns = torch.triu_indices(size, size, 1, device=generators.device)
        upper[:, rows, columns] = generators
        skew = upper - upper.mT
        # peft's sign is the opposite of LyCORIS'; here the rotation is of inputs, by its transpose.
        rotation = _cayley(-skew) if self.terms is None else _series(skew, self.terms)
        rotation = _partly(rotation, scale)
        if self.kernels_turned_back and base.ndim > 2:
            rotation = rotation.mT
        blocks = base.reshape(len(base), -1, size)
        rotation = rotation.expand(blocks.shape[1], -1, -1)
        return torch.einsum("onj,nij->oni", blocks, rotation).reshape(base.shape) - base


def block_size(numbers: int) -> int:
    """The rows of a skew-symmetric matrix with so many numbers above its diagonal; 0 if there is
    no such matrix."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if size * (size - 1) // 2 == numbers else 0


def _skew(blocks: Tensor) -> Tensor:
    return blocks.float() - blocks.float().mT


def _cayley(skew: Tensor) -> Tensor:
    """``(1 + Q)(1 - Q)⁻¹``, of which the inverse always exists."""
    identity = _identity(skew)
    rotation: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotation


def _series(skew: Tensor, terms: int) -> Tensor:
    """``1 + 2Q + 2Q² + …``, peft's for Cayley's formula: of more than two terms the last, which is
    at least ``Q³``, counts once."""
    power = _identity(skew).expand_as(skew)
    total = power.clone()
    last = max(3, terms - 1) if terms > 2 else terms - 1
    for exponent in range(1, last + 1):
        power = power @ skew
        total += power * (1 if exponent == last and terms > 2 else 2)
    return total


def _partly(rotations: Tensor, scale: float) -> Tensor:
    """On the line from the identity to the rotations."""
    return _identity(rotations) * (1 - scale) + rotations * scale


def _identity(matrices: Tensor) -> Tensor:
    """Of their size and dtype, whatever torch's defaults are."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)


def _butterfly(rows: Tensor, rotation: Tensor, stage: int) -> Tensor:
    """Rotate ``[out, in]`` by ``[n, b, b]``, whose blocks have rows ``2^stage · b/2`` apart."""
    size = rotation.shape[-1]
    apart = (size // 2) << stage
    mixed = rows.reshape(-1, 2, apart, rows.shape[1]).transpose(1, 2)
    mixed = torch.einsum("nab,nbi->nai", rotation, mixed.reshape(-1, size, rows.shape[1]))
    return mixed.reshape(-1, apart, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
