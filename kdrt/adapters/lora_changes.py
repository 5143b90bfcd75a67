"""Kinds of LoRAs that change a weight by what it is: DoRA, GLoRA and (IA)³."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.lora_layer import Addition, Layer, any_zero


@dataclass(frozen=True)
class DoraLayer(Layer):
    """A LoRA that turns a weight, and a length for each of its rows or columns beside it
    (Liu et al. 2024, arXiv:2402.09353).

    ``W' = m · (W + ΔW) / ‖W + ΔW‖``. A scale is that of the whole change, so that 0 is off; peft
    scales ``ΔW`` alone and keeps ``m``.

    Attributes:
        inner: gives ΔW.
        magnitude: m, ``[out]`` or ``[in]``.
        by_row: whether it is of rows, as the paper and newer trainers have it.
    """

    kind = "DoRA"
    inner: Addition
    magnitude: Tensor
    by_row: bool

    def fits(self, shape: Sequence[int]) -> bool:
        if len(shape) < 2 or not self.inner.fits(shape):
            return False
        return len(self.magnitude) == shape[0 if self.by_row else 1]

    @property
    def size_text(self) -> str:
        lengths = f"{len(self.magnitude)} {'rows' if self.by_row else 'columns'}"
        return f"{self.inner.size_text} with magnitudes of {lengths}"

    @property
    def changes_nothing(self) -> bool:
        return False  # the magnitudes are a change, whatever the rest

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def strength(self) -> float | None:
        return self.inner.strength

    def change(self, base: Tensor, scale: float) -> Tensor:
        turned = (base + self.inner.change(base, 1.0)).reshape(*base.shape[:2], -1)
        axes = (1, 2) if self.by_row else (0, 2)
        lengths = turned.pow(2).sum(axes, keepdim=True).sqrt()
        magnitude = self.magnitude.float().reshape(lengths.shape)
        # A row of zeros has no direction; it stays as it is.
        turned = turned * (magnitude / (lengths + torch.finfo(torch.float32).eps))
        return (turned.reshape(base.shape) - base) * scale


@dataclass(frozen=True)
class GloraLayer(Layer):
    """``W·a1·a2 + b1·b2`` (Chavan et al. 2023, arXiv:2306.07967, as LyCORIS has it).

    Attributes:
        a1, a2: ``[in, r]`` and ``[r, in]``.
        b1, b2: ``[out, r]`` and ``[r, in]``, with the kernel of a convolution.
        scale: alpha / rank.
    """

    kind = "GLoRA"
    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    scale: float = 1.0

    def fits(self, shape: Sequence[int]) -> bool:
        return (
            len(shape) > 1
            and (len(self.b1), len(self.a1)) == tuple(shape[:2])
            and self.b2[0].numel() == math.prod(shape[1:])
        )

    @property
    def size_text(self) -> str:
        return " x ".join(map(str, (len(self.b1), *self.b2.shape[1:])))

    @property
    def changes_nothing(self) -> bool:
        return not self.scale or (any_zero(self.a1, self.a2) and any_zero(self.b1, self.b2))

    @property
    def rank(self) -> int:
        return len(self.b2)

    @property
    def strength(self) -> float:
        return self.scale

    def change(self, base: Tensor, scale: float) -> Tensor:
        a1, a2, b1 = (matrix.float().flatten(1) for matrix in (self.a1, self.a2, self.b1))
        turned = torch.einsum("oik,ir,rj->ojk", base.reshape(*base.shape[:2], -1), a1, a2)
        added = b1 @ self.b2.float().flatten(1)
        return (turned.reshape(base.shape) + added.reshape(base.shape)) * (self.scale * scale)


@dataclass(frozen=True)
class Ia3Layer(Layer):
    """Rows or columns of a weight, each times a number (Liu et al. 2022, arXiv:2205.05638).

    Attributes:
        factor: what is added to 1, ``[out]``, or ``[in]``.
        by_row: whether it is of rows.
        optional: see :class:`~kdrt.adapters.lora_layer.Layer`.
    """

    kind = "(IA)³"
    factor: Tensor
    by_row: bool
    optional: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        axis = 0 if self.by_row else 1
        return axis < len(shape) and len(self.factor) == shape[axis]

    @property
    def size_text(self) -> str:
        return f"{len(self.factor)} {'rows' if self.by_row else 'columns'}"

    @property
    def changes_nothing(self) -> bool:
        return any_zero(self.factor)

    def change(self, base: Tensor, scale: float) -> Tensor:
        after = base.ndim - 1 if self.by_row else base.ndim - 2
        return base * self.factor.float().reshape(-1, *[1] * after) * scale
