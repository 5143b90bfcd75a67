"""The UNet's up blocks with FreeU inside and upsampling to any size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kdrt_export.onnx.ops import optional
from kdrt_export.rewrites.freeu import scale_backbone, scale_low_frequencies

FREEU_BLOCKS = 2
"""FreeU works in the first two up blocks."""


class ExportUpBlock(nn.Module):
    """Stands in for diffusers' ``UpBlock2D`` and ``CrossAttnUpBlock2D``."""

    def __init__(self, source: Any, index: int) -> None:
        super().__init__()
        self.resnets = source.resnets
        self.attentions = getattr(source, "attentions", None)
        self.upsamplers = source.upsamplers
        self.index = index

    def forward(
        self,
        hidden: torch.Tensor,
        skips: list[torch.Tensor],
        embedding: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        freeu: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's result, and what came to its last layer.

        ``skips`` are the down path's results, the newest last; this block takes what it uses off
        the end. ``freeu`` is float32 [B, 4]: b1, b2, s1, s2 of each image.
        """
        told = (embedding, encoder_hidden_states, freeu)
        deep = hidden
        for position in range(len(self.resnets) - 1):
            deep = self._layer(position, deep, skips, *told)
        hidden = self.last_layer(deep, skips, *told)
        for upsampler in self.upsamplers or []:
            # To the size of the skip it meets next: doubling would miss odd sizes by one.
            hidden = F.interpolate(hidden, size=skips[-1].shape[-2:], mode="nearest")
            hidden = upsampler.conv(hidden)
        return hidden, deep

    def last_layer(
        self, hidden: torch.Tensor, skips: list[torch.Tensor], *told: torch.Tensor | Any
    ) -> torch.Tensor:
        """The last layer, arguments as for the whole."""
        return self._layer(len(self.resnets) - 1, hidden, skips, *told)

    def _layer(
        self,
        position: int,
        hidden: torch.Tensor,
        skips: list[torch.Tensor],
        embedding: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        freeu: torch.Tensor,
    ) -> torch.Tensor:
        skip = skips.pop()
        if self.index < FREEU_BLOCKS:
            b, s = (freeu[:, i : i + 1] for i in (self.index, self.index + 2))
            hidden = optional(hidden, scale_backbone(hidden, b))
            skip = optional(skip, scale_low_frequencies(skip, s))
        hidden = self.resnets[position](torch.cat([hidden, skip], dim=1), embedding)
        if self.attentions is not None:
            hidden = self.attentions[position](hidden, encoder_hidden_states)[0]
        return hidden


def rewrite_up_blocks(unet: Any) -> None:
    """Replace the up blocks of a UNet, in place."""
    for index, block in enumerate(unet.up_blocks):
        unet.up_blocks[index] = ExportUpBlock(block, index)
