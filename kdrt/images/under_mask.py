"""What lies under a mask to begin with, where it is not the image itself: the colours around it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

_RADII = (256, 64, 16, 4, 2)
"""Of the colours that flow under a mask, in pixels: from the largest to the smallest."""


def with_colours_around(pixels: Tensor, mask: Tensor) -> Tensor:
    """Images whose masked part is filled with the colours around it: those near its edge from near,
    those within from further away.

    Args:
        pixels: float32 ``[B, 3, H, W]`` in [-1, 1].
        mask: float32 ``[B, 1, H, W]`` in [0, 1]; where it is 0 no pixel changes.
    """
    filled = torch.stack([_filled(*each) for each in zip(pixels, mask, strict=True)])
    return torch.where(mask == 0, pixels, torch.lerp(pixels, filled, mask))


def _filled(pixels: Tensor, mask: Tensor) -> Tensor:
    colours = pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    kept = Image.fromarray(colours.permute(1, 2, 0).numpy()).convert("RGBA")
    grey = Image.fromarray(mask[0].mul(255).round().to(torch.uint8).numpy())
    kept.putalpha(ImageOps.invert(grey))
    # Alpha in the colours, so that what is hidden does not flow into what is not.
    kept = kept.convert("RGBa")
    filled = Image.new("RGBA", kept.size, (0, 0, 0, 255))
    for radius in _RADII:
        flowing = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(4 if radius < 16 else 2):
            filled.alpha_composite(flowing)
    array = np.asarray(filled.convert("RGB"), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).div(127.5).sub(1)
