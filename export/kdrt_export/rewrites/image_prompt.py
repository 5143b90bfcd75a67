"""Where a UNet attends to images, and how much.

Each image that IP-Adapters take has tokens of its own, and every cross-attention adds a second
attention to those (Ye et al. 2023, arXiv:2308.06721). It counts by a scale for each transformer,
as diffusers' ``set_ip_adapter_scale`` has it, and by a mask for each place of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel

from kdrt_export.onnx.ops import to_tokens


class ImageAttention(NamedTuple):
    """A transformer of a UNet.

    Attributes:
        name: as scales are given by it: ``down.block_1.0``, ``mid``.
        path: of the module.
        level: how many times its latents were halved.
    """

    name: str
    path: str
    level: int


class ImagePrompt(NamedTuple):
    """What a UNet is told of S images beside the prompt.

    Attributes:
        tokens: of each image, [B, N, D].
        scale: float32 [B, S, A], for each of A transformers.
        mask: [B, S·K, h, w], at the K sizes that latents have there; a smaller one lies in the
            corner.
    """

    tokens: Sequence[torch.Tensor]
    scale: torch.Tensor
    mask: torch.Tensor

    def at(self, column: int, channel: int, latents: torch.Tensor) -> ImageTokens:
        """The same for one transformer.

        Args:
            column: of the scale.
            channel: of the mask, from 0 to K − 1.
            latents: [B, C, H, W], those that it takes.
        """
        height, width = latents.shape[-2:]
        sizes = self.mask.shape[1] // len(self.tokens)
        weights = []
        for image in range(len(self.tokens)):
            first = image * sizes + channel
            mask = to_tokens(self.mask[:, first : first + 1, :height, :width])
            weights.append((self.scale[:, image, column, None, None] * mask).to(latents.dtype))
        return ImageTokens(self.tokens, weights)


class ImageTokens(NamedTuple):
    """What an attention is told: the ``tokens`` of each image, and how much it counts at each place
    of the latents, [B, H·W, 1]."""

    tokens: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor]


def image_attentions(unet: UNet2DConditionModel) -> tuple[ImageAttention, ...]:
    """The transformers of a UNet, in the order they run."""
    return tuple(_attentions(unet))


def _attentions(unet: Any) -> Iterator[ImageAttention]:
    deepest = len(unet.down_blocks) - 1
    for block, module in enumerate(unet.down_blocks):
        for index, _ in enumerate(getattr(module, "attentions", ())):
            path = f"down_blocks.{block}.attentions.{index}"
            yield ImageAttention(f"down.block_{block}.{index}", path, block)
    if getattr(unet.mid_block, "attentions", None):
        yield ImageAttention("mid", "mid_block.attentions.0", deepest)
    for block, module in enumerate(unet.up_blocks):
        for index, _ in enumerate(getattr(module, "attentions", ())):
            path = f"up_blocks.{block}.attentions.{index}"
            yield ImageAttention(f"up.block_{block}.{index}", path, deepest - block)
