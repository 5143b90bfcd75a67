"""The tensors of one layer of a file, each checked before it is computed with.

What they make together says :mod:`kdrt.adapters.lora_kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.lora_keys import Part
from kdrt.adapters.lora_metadata import PeftConfig
from kdrt.adapters.tensor_file import checked
from kdrt.errors import InvalidRequestError

MAX_RANK = 8192
"""Far beyond what the widest layer can use: it bounds what is computed of a layer that fits."""


@dataclass(frozen=True)
class LayerParts:
    """The tensors of one layer as a file has them.

    Attributes:
        tensors: of the file, by their keys.
        keys: of those that are parts of this layer.
        file: its name, for messages.
        module: the path of the module, with underscores.
    """

    tensors: Mapping[str, Tensor]
    keys: Mapping[Part, str]
    file: str
    module: str

    @property
    def name(self) -> str:
        """Of the layer, as messages begin."""
        return f"{self.file}: layer {self.module}"

    def need(self, kind: str, *parts: Part) -> list[Tensor]:
        """The tensors of parts without which there is no layer of the kind.

        Raises:
            InvalidRequestError: one is missing, or has numbers that are not finite.
        """
        for part in parts:
            if part not in self.keys:
                key = next(iter(self.keys.values()))
                raise InvalidRequestError(
                    f"{self.name} has only half of a {kind}, the file is damaged: '{key}' is "
                    f"without its {part}"
                )
        return [self.tensor(part) for part in parts]

    def tensor(self, part: Part) -> Tensor:
        """The tensor of a part that the layer has.

        Raises:
            InvalidRequestError: it has numbers that are not finite.
        """
        return checked(self.tensors[self.keys[part]], f"{self.file}: '{self.keys[part]}'")

    def number(self, part: Part) -> float:
        """The one number of a part that the layer has.

        Raises:
            InvalidRequestError: it has more, or it is not finite.
        """
        number, key = self.tensors[self.keys[part]], self.keys[part]
        if (
            number.numel() != 1
            or number.dtype is torch.bool
            or number.is_complex()
            or number.is_meta
        ):
            raise InvalidRequestError(
                f"{self.file}: '{key}' must be one number, not {number.dtype} of shape "
                f"{list(number.shape)}"
            )
        return float(checked(number.detach().double(), f"{self.file}: '{key}'"))

    def scale(self, rank: int, config: PeftConfig | None) -> float:
        """alpha / rank, by the file or by peft's configuration; 1 where neither tells.

        Raises:
            InvalidRequestError: alpha is no finite number.
        """
        if "alpha" in self.keys:
            return self.number("alpha") / rank
        return 1.0 if config is None else config.scale(self.module, rank)

    def check(self, fits: bool, shapes: Mapping[str, Tensor], rule: str) -> None:
        """Raises InvalidRequestError: tensors do not fit each other, as ``rule`` says they must."""
        if not fits:
            found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in shapes.items())
            raise InvalidRequestError(
                f"{self.name} has matrices that do not belong together: {found}; {rule}"
            )

    def check_rank(self, rank: int) -> None:
        """Raises InvalidRequestError: it is beyond all reason."""
        if rank > MAX_RANK:
            raise InvalidRequestError(f"{self.name} has rank {rank}; at most {MAX_RANK} is read")


def is_matrix(tensor: Tensor) -> bool:
    """Whether it is a matrix, or a 1 x 1 kernel in its place."""
    return tensor.ndim in (2, 4) and tensor.shape[2:].numel() == 1 and tensor.numel() > 0


def is_vector(tensor: Tensor) -> bool:
    """Whether all its numbers are along one axis."""
    return tensor.ndim > 0 and tensor.numel() > 0 and tensor.numel() == max(tensor.shape)


def is_core(tensor: Tensor, rows: int, columns: int) -> bool:
    """Whether it is a kernel between matrices of these ranks."""
    return tensor.ndim == 4 and tensor.shape[:2] == (rows, columns) and tensor.numel() > 0
