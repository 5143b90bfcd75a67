"""The images that image to image and inpainting begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
"""From pixels float32 ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, C, h, w]``."""


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """The images that a job begins with.

    Attributes:
        pixels: float32 ``[B, 3, H, W]`` in [-1, 1]; None where latents were given.
        latents: ``[B, C, h, w]``, as a run with ``output_type="latent"`` gives them.
        mask: float32 ``[B, 1, H, W]``: 1 is repainted, 0 is kept; None repaints all.
        anew: nothing of what is masked is kept: it begins as noise alone (a strength of 1).
        keep_unmasked: paste the image's own pixels over what is not masked.
        height, width: in pixels.
    """

    pixels: Tensor | None
    latents: Tensor | None
    mask: Tensor | None
    anew: bool
    keep_unmasked: bool
    height: int
    width: int

    def encoded(self, encode: Encode) -> Tensor:
        """The latents ``[B, C, h, w]``."""
        if self.pixels is None:
            assert self.latents is not None  # one of the two is always there
            return self.latents
        return encode(self.pixels)

    def latent_mask(self, scale: int) -> Tensor | None:
        """The mask by latents, bool ``[B, 1, h, w]``: those with any pixel to repaint, so that
        nothing thinner than a latent is lost."""
        return None if self.mask is None else F.max_pool2d(self.mask, scale) >= 0.5

    def paste(self, pixels: Tensor) -> Tensor:
        """The image's own pixels over what is not masked; a soft mask blends. Decoding changes
        every pixel a little: this restores the original ones."""
        if self.mask is None or self.pixels is None or not self.keep_unmasked:
            return pixels
        mask, kept = self.mask.to(pixels.device), self.pixels.to(pixels.device)
        return torch.where(mask == 0, kept, torch.lerp(kept, pixels, mask))
