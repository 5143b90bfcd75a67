"""What a LoRA does to one weight of a network: the interface of all kinds, and those that add.

An addition does not depend on the weight: it is the same on every model. Other kinds do depend on
it, see :mod:`kdrt.adapters.lora_changes` and :mod:`kdrt.adapters.lora_rotations`. All take the base
weight, never one that another LoRA has changed, so their order does not matter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class Layer(ABC):
    """What a LoRA does to one weight or bias.

    Attributes:
        kind: what its trainers call the method.
        optional: whether a model may lack the weight, as a linear layer its bias.
    """

    kind: ClassVar[str]
    optional: bool = False

    @abstractmethod
    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape can take it; decided before anything is computed, since
        two small matrices can make an immense one."""

    @property
    @abstractmethod
    def size_text(self) -> str:
        """The size of weight that it is made for."""

    @property
    @abstractmethod
    def changes_nothing(self) -> bool:
        """Whether it leaves every weight as it is."""

    @property
    def rank(self) -> int | None:
        """Of its matrices; None where they have none."""
        return None

    @property
    def strength(self) -> float | None:
        """alpha / rank; None where there is no such factor."""
        return None

    @abstractmethod
    def change(self, base: Tensor, scale: float) -> Tensor:
        """What is added to a weight.

        Args:
            base: of the weight, float32, of a shape that :meth:`fits`. It is not changed.
            scale: how strong; at 0 nothing changes.

        Returns:
            float32 of the shape of ``base``.
        """


class Addition(Layer):
    """A layer whose change does not depend on the weight."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of :meth:`delta`."""

    @abstractmethod
    def delta(self) -> Tensor:
        """The change at scale 1, float32."""

    def fits(self, shape: Sequence[int]) -> bool:
        # By its rows and size: a 1 x 1 convolution and a linear layer are the same.
        return math.prod(self.shape) == math.prod(shape) and self.shape[0] == shape[0]

    @property
    def size_text(self) -> str:
        return " x ".join(map(str, self.shape))

    def change(self, base: Tensor, scale: float) -> Tensor:
        return (self.delta() * scale).reshape(base.shape)


@dataclass(frozen=True)
class LoraLayer(Addition):
    """A product of two or three matrices (LoRA; LoCon on convolutions).

    Attributes:
        down: ``[r, in]``, or ``[r, in, kh, kw]`` of a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        mid: ``[r, r, kh, kw]``, for convolutions split in three (Tucker); ``down`` is 1 × 1 then.
        scale: alpha / rank.
    """

    kind = "LoRA"
    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def strength(self) -> float:
        return self.scale

    @property
    def changes_nothing(self) -> bool:
        return not self.scale or any_zero(self.down, self.up, self.mid)

    def delta(self) -> Tensor:
        if self.mid is not None:
            delta = tucker(self.mid, self.up.flatten(1).T, self.down.flatten(1))
        else:
            delta = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return delta.reshape(self.shape) * self.scale


@dataclass(frozen=True)
class Difference(Addition):
    """A whole difference, to a weight or a bias: ``value``, of its shape."""

    kind = "whole difference"
    value: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def changes_nothing(self) -> bool:
        return not self.scale or any_zero(self.value)

    def delta(self) -> Tensor:
        return self.value.float() * self.scale


@dataclass(frozen=True)
class LohaLayer(Addition):
    """The product, number by number, of two LoRAs (Hyeon-Woo et al. 2021, arXiv:2108.06098).

    Attributes:
        a: of both, ``[out, r]``; with ``t``, ``[r, out]``.
        b: of both, ``[r, in]``; ``in`` has the kernel of a convolution in it if there is no ``t``.
        t: of both, ``[r, r, kh, kw]`` (Tucker), or None.
        scale: alpha / rank.
    """

    kind = "LoHa"
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    t: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.t is None:
            return (len(self.a[0]), self.b[0][0].numel())
        return (self.a[0].shape[1], self.b[0].shape[1], *self.t[0].shape[2:])

    @property
    def rank(self) -> int:
        return len(self.b[0])

    @property
    def strength(self) -> float:
        return self.scale

    @property
    def changes_nothing(self) -> bool:
        return not self.scale or any_zero(*self.a, *self.b, *(self.t or ()))

    def delta(self) -> Tensor:
        first, second = (self._half(index) for index in (0, 1))
        return first * second * self.scale

    def _half(self, index: int) -> Tensor:
        a, b = self.a[index], self.b[index]
        if self.t is not None:
            return tucker(self.t[index], a, b)
        return a.float() @ b.float().flatten(1)


@dataclass(frozen=True)
class LokrLayer(Addition):
    """A Kronecker product of two matrices, each whole or as a product of its own (LyCORIS).

    Attributes:
        first: one matrix, or ``(a, b)`` with ``a @ b`` in its place.
        second: one matrix or kernel; or ``(a, b)``, of which ``b`` may have a kernel.
        t: ``[r, r, kh, kw]`` (Tucker), or None. ``a`` of ``second`` is ``[r, rows]`` with it.
        scale: alpha / rank, 1 if both are whole.
    """

    kind = "LoKr"
    first: Tensor | tuple[Tensor, Tensor]
    second: Tensor | tuple[Tensor, Tensor]
    t: Tensor | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = _sizes(self.first)
        more_rows, more_columns = _sizes(self.second)
        if self.t is not None and isinstance(self.second, tuple):
            more_rows = self.second[0].shape[1]
            more_columns = self.second[1].shape[1] * self.t.shape[2:].numel()
        return (rows * more_rows, columns * more_columns)

    @property
    def rank(self) -> int | None:
        pair = next((m for m in (self.first, self.second) if isinstance(m, tuple)), None)
        return None if pair is None else len(pair[1])

    @property
    def strength(self) -> float:
        return self.scale

    @property
    def changes_nothing(self) -> bool:
        parts = [m if isinstance(m, tuple) else (m,) for m in (self.first, self.second)]
        return not self.scale or any_zero(*parts[0], *parts[1], self.t)

    def delta(self) -> Tensor:
        if self.t is not None and isinstance(self.second, tuple):
            second = tucker(self.t, *self.second)
        else:
            second = _product(self.second)
        # The kernel belongs to the inner matrix, so its columns are one row of numbers here.
        return torch.kron(_product(self.first), second.flatten(1)) * self.scale


def tucker(core: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[out, in, kh, kw]`` from ``[r, s, kh, kw]``, ``[r, out]`` and ``[s, in]``, in float32."""
    return torch.einsum("rshw,ro,si->oihw", core.float(), rows.float(), columns.float())


def any_zero(*tensors: Tensor | None) -> bool:
    """Whether a tensor has zeros alone, and so makes a product of all of them zero."""
    return any(tensor is not None and not bool(tensor.float().any()) for tensor in tensors)


def _product(matrix: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    if isinstance(matrix, tuple):
        return matrix[0].float() @ matrix[1].float().flatten(1)
    return matrix.float()


def _sizes(matrix: Tensor | tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Rows, and columns with the kernel in them."""
    if isinstance(matrix, tuple):
        return len(matrix[0]), matrix[1][0].numel()
    return len(matrix), matrix[0].numel()
