"""What a LoRA adds to one weight of a network, checked before anything is computed of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.lora_keys import Part
from kdrt.adapters.lora_metadata import PeftAlphas
from kdrt.adapters.tensor_file import checked
from kdrt.errors import InvalidRequestError

MAX_RANK = 8192
"""Far beyond what the widest layer can use: it bounds what is computed of a layer that fits."""


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one weight, at scale 1.

    Attributes:
        down: ``[r, in]``, or ``[r, in, kh, kw]`` of a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        mid: ``[r, r, kh, kw]``, for convolutions split in three (LoCon); ``down`` is 1 × 1 then.
        scale: alpha / rank.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of :meth:`delta`, before anything is computed."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self) -> Tensor:
        """The change of the layer's weight, float32 ``[out, in]`` or ``[out, in, kh, kw]``."""
        up, down = self.up.float().flatten(1), self.down.float()
        if self.mid is not None:
            delta = torch.einsum("or,rshw,si->oihw", up, self.mid.float(), down.flatten(1))
        else:
            delta = (up @ down.flatten(1)).reshape(self.shape)
        return delta * self.scale


@dataclass(frozen=True)
class Difference:
    """What a LoRA adds to one weight or bias as it is, at scale 1: ``value``, of its shape."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def delta(self) -> Tensor:
        """The change in float32."""
        return self.value.float()


Layer = LoraLayer | Difference


@dataclass(frozen=True)
class LayerParts:
    """The tensors of one layer as a file has them; ``keys`` names its parts among ``tensors``."""

    tensors: Mapping[str, Tensor]
    keys: Mapping[Part, str]
    file: str
    module: str

    @property
    def name(self) -> str:
        return f"{self.file}: layer {self.module}"

    def layer(self, alphas: PeftAlphas | None) -> Layer:
        if "difference" in self.keys:
            if not self.keys.keys() <= {"difference", "alpha"}:  # where an alpha means nothing
                raise InvalidRequestError(f"{self.name} has both a LoRA and a whole difference")
            return Difference(self._tensor("difference"))
        if "down" not in self.keys or "up" not in self.keys:
            raise InvalidRequestError(f"{self.name} has only half of a LoRA, the file is damaged")
        down, up = self._tensor("down"), self._tensor("up")
        mid = self._tensor("mid") if "mid" in self.keys else None
        rank = self._rank(down, up, mid)
        if "alpha" in self.keys:
            scale = self._alpha() / rank
        else:
            scale = 1.0 if alphas is None else alphas.scale(self.module, rank)
        return LoraLayer(down, up, mid, scale)

    def _rank(self, down: Tensor, up: Tensor, mid: Tensor | None) -> int:
        shapes = {"down": down.shape, "up": up.shape}
        fits = (
            down.ndim in (2, 4)
            and up.ndim in (2, 4)
            and up.shape[2:].numel() == 1
            and up.numel() > 0
            and down.numel() > 0
        )
        if mid is None:
            fits = fits and up.shape[1] == down.shape[0]
        else:
            shapes["mid"] = mid.shape
            fits = (
                fits
                and mid.ndim == 4
                and mid.shape[:2] == (up.shape[1], down.shape[0])
                and mid.numel() > 0
                and down.shape[2:].numel() == 1
            )
        if not fits:
            found = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
            raise InvalidRequestError(
                f"{self.name} has matrices that do not belong together: {found}; up must be "
                "[out, rank] and down [rank, in]"
            )
        if max(down.shape[0], up.shape[1]) > MAX_RANK:
            raise InvalidRequestError(
                f"{self.name} has rank {len(down)}; at most {MAX_RANK} is read"
            )
        return len(down)

    def _tensor(self, part: Part) -> Tensor:
        return checked(self.tensors[self.keys[part]], f"{self.file}: '{self.keys[part]}'")

    def _alpha(self) -> float:
        alpha, key = self.tensors[self.keys["alpha"]], self.keys["alpha"]
        if alpha.numel() != 1 or alpha.dtype is torch.bool or alpha.is_complex() or alpha.is_meta:
            raise InvalidRequestError(
                f"{self.file}: '{key}' must be one number, not {alpha.dtype} of shape "
                f"{list(alpha.shape)}"
            )
        return float(checked(alpha.detach().double(), f"{self.file}: '{key}'"))
