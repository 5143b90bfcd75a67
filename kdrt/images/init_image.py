"""The images that image to image and inpainting begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrt.common.literals import InpaintFill
from kdrt.images.masked_part import MaskedPart
from kdrt.images.under_mask import with_colours_around

Encode = Callable[[Tensor], Tensor]
"""From pixels float32 ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, C, h, w]``."""


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """The images that a job begins with.

    What lies under the mask to begin with is, by ``fill``:

        original    the image itself; nothing of it where ``anew``
        blurred     the colours around the mask, which flow into it
        noise       the seed's unit noise, taken for latents of an image
        nothing     latents of zero, which most VAEs decode to a grey

    At a strength of s each of them gets as much noise as a run has after ``1 − s`` of its steps.

    Attributes:
        pixels: float32 ``[B, 3, H, W]`` in [-1, 1]; None where latents were given.
        latents: ``[B, C, h, w]``, as a run with ``output_type="latent"`` gives them.
        mask: float32 ``[B, 1, H, W]``: 1 is repainted, 0 is kept; None repaints all.
        soft: what lies in between is a strength of its own for every pixel.
        fill: see above; of no effect without a mask.
        anew: nothing of what is masked is kept: it begins as noise alone (a strength of 1).
        keep_unmasked: paste the image's own pixels over what is not masked.
        part: the whole images, where pixels and mask are a part of each; None where they are whole.
        height, width: of pixels and mask.
    """

    pixels: Tensor | None
    latents: Tensor | None
    mask: Tensor | None
    soft: bool
    fill: InpaintFill
    anew: bool
    keep_unmasked: bool
    part: MaskedPart | None
    height: int
    width: int

    def encoded(self, encode: Encode) -> Tensor:
        """The latents ``[B, C, h, w]``, with the colours that lie under the mask."""
        if self.pixels is None:
            assert self.latents is not None  # one of the two is always there
            return self.latents
        if self.fill == "blurred" and self.mask is not None:
            return encode(with_colours_around(self.pixels, self.mask))
        return encode(self.pixels)

    def latent_mask(self, scale: int) -> Tensor | None:
        """The mask by latents, float32 ``[B, 1, h, w]``: of each its most repainted pixel, so that
        nothing thinner than a latent is lost. Unless it is soft, it is 0 or 1."""
        if self.mask is None:
            return None
        most = F.max_pool2d(self.mask, scale)
        return most if self.soft else (most >= 0.5).float()

    def paste(self, pixels: Tensor) -> Tensor:
        """The image's own pixels over what is not masked. Decoding changes every pixel a little:
        this restores the original ones. What is grey in the mask is blended, unless it is a
        strength. A part is put back into its whole."""
        if self.part is not None:
            return self.part.put_back(pixels, opaque=self.soft)
        if self.mask is None or self.pixels is None or not self.keep_unmasked:
            return pixels
        mask, kept = self.mask.to(pixels.device), self.pixels.to(pixels.device)
        made = pixels if self.soft else torch.lerp(kept, pixels, mask)
        return torch.where(mask == 0, kept, made)
