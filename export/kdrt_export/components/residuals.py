"""What ControlNets and T2I-Adapters add to a UNet, as inputs of its graph.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) gives a tensor for every skip connection and one
for the middle block. A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) gives one for every down
block, which goes into the block; Stable Diffusion XL's give one more, for the middle block. Zeros
change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdrt.bundle.components import ADAPTER_RESIDUAL, DOWN_RESIDUAL, MID_RESIDUAL
from kdrt_engines.spec import TensorSpec, part_of
from kdrt_export.errors import UnsupportedModelError

Place = tuple[int, int]
"""Channels of a tensor, and how often its sides have been halved."""


@dataclass(frozen=True)
class Residuals:
    """The residuals that a UNet takes.

    Inputs, in the dtype of the UNet: down_residual_i [B,C,h,w] for every skip connection, that of
    the first convolution included; mid_residual for what comes out of the middle block;
    adapter_residual_i for every down block, and for the middle block if there is one. Sides halve
    as in the network, rounded up.

    Attributes:
        skips: where the skip connections are, the newest last.
        middle: where the middle block is.
        blocks: where the down blocks take an adapter's.
        has_middle: whether there is a middle block, which takes one too.
    """

    skips: tuple[Place, ...]
    middle: Place
    blocks: tuple[Place, ...]
    has_middle: bool

    @classmethod
    def of(cls, network: Any) -> Residuals:
        """Those of a UNet, or those that a ControlNet gives.

        Raises:
            UnsupportedModelError: its sides do not halve rounded up.
        """
        skips, blocks, level = [(network.conv_in.out_channels, 0)], [], 0
        for block in network.down_blocks:
            own = (block.resnets[-1].out_channels, level)
            skips.extend([own] * len(block.resnets))
            for downsampler in block.downsamplers or []:
                if downsampler.padding != 1:
                    raise UnsupportedModelError(
                        f"a UNet with downsample_padding={downsampler.padding} cannot be exported "
                        "with control"
                    )
                level += 1
                skips.append((downsampler.out_channels, level))
            blocks.append(own if _takes_residual(block) else skips[-1])
        middle = (skips[-1][0], level)
        return cls(tuple(skips), middle, tuple(blocks), network.mid_block is not None)

    @staticmethod
    def as_diffusers(named: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The arguments of diffusers' UNet for the residuals among these inputs."""
        if MID_RESIDUAL not in named:
            return {}
        return {
            "down_block_additional_residuals": tuple(_numbered(named, DOWN_RESIDUAL)),
            "mid_block_additional_residual": named[MID_RESIDUAL],
            "down_intrablock_additional_residuals": _numbered(named, ADAPTER_RESIDUAL),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in order."""
        return (*self._of_control(), *self._of_adapters())

    def specs(self, dtype: str) -> list[TensorSpec]:
        """The inputs."""
        return [*self.control_specs(dtype), *_specs(self._of_adapters(), dtype)]

    def control_specs(self, dtype: str) -> list[TensorSpec]:
        """Those for a ControlNet, which are what one gives."""
        return _specs(self._of_control(), dtype)

    def _of_control(self) -> dict[str, Place]:
        return {
            **{f"{DOWN_RESIDUAL}{index}": place for index, place in enumerate(self.skips)},
            MID_RESIDUAL: self.middle,
        }

    def _of_adapters(self) -> dict[str, Place]:
        places = (*self.blocks, self.middle) if self.has_middle else self.blocks
        return {f"{ADAPTER_RESIDUAL}{index}": place for index, place in enumerate(places)}

    def run(
        self,
        index: int,
        block: nn.Module,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        told: Mapping[str, Any],
        given: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """A down block with its adapter residual: what comes out, and the skip connections.

        Args:
            index: of the block.
            block: diffusers' ``DownBlock2D`` or ``CrossAttnDownBlock2D``.
            hidden: what comes in.
            embedding: of time.
            told: its arguments besides.
            given: the residuals by name.
        """
        residual = given[f"{ADAPTER_RESIDUAL}{index}"]
        if _takes_residual(block):
            hidden, produced = block(hidden, embedding, **told, additional_residuals=residual)
            return hidden, produced
        hidden, produced = block(hidden, embedding, **told)
        # In diffusers this is an addition in place, and the newest skip is the same tensor.
        hidden = hidden + residual
        return hidden, (*produced[:-1], hidden)

    def add(
        self, hidden: torch.Tensor, skips: list[torch.Tensor], given: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What goes up: ``hidden`` of the middle block and the skip connections, with what a
        ControlNet gives, and the former with the last of the adapter's."""
        if self.has_middle:
            hidden = hidden + given[f"{ADAPTER_RESIDUAL}{len(self.blocks)}"]
        controlled = [skip + given[f"{DOWN_RESIDUAL}{index}"] for index, skip in enumerate(skips)]
        return hidden + given[MID_RESIDUAL], controlled


def sides(level: int) -> tuple[str | int, str | int]:
    """Height and width after ``level`` halvings of h and w."""
    return part_of("h", 2**level), part_of("w", 2**level)


def _specs(places: Mapping[str, Place], dtype: str) -> list[TensorSpec]:
    return [
        TensorSpec(name, dtype, ("B", channels, *sides(level)))
        for name, (channels, level) in places.items()
    ]


def _numbered(named: Mapping[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    """The tensors whose names are ``prefix`` and a number, in order."""
    return [tensor for name, tensor in named.items() if name.startswith(prefix)]


def _takes_residual(block: nn.Module) -> bool:
    """Whether diffusers' block adds an adapter's residual itself, before it halves the sides."""
    return bool(getattr(block, "has_cross_attention", False))
