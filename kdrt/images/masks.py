"""Shaping a mask before it is used: turned round, grown, blurred.

Masks are float32 ``[B, 1, H, W]`` in [0, 1]: 1 is repainted, 0 is kept.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor


def shaped(mask: Tensor, *, invert: bool = False, grow: int = 0, blur: float = 0.0) -> Tensor:
    """A mask that is inverted, then grown, then blurred, as far as asked for.

    Args:
        mask: ``[B, 1, H, W]``.
        invert: see :func:`inverted`.
        grow: see :func:`grown`.
        blur: see :func:`blurred`.
    """
    if invert:
        mask = inverted(mask)
    return blurred(grown(mask, grow), blur)


def inverted(mask: Tensor) -> Tensor:
    """What was kept is repainted, and the other way round."""
    return 1 - mask


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask whose white reaches ``pixels`` further in every direction, corners included; negative
    numbers shrink it. Beyond the border of the image nothing is black or white."""
    if pixels < 0:
        return 1 - grown(1 - mask, -pixels)
    for axis in (2, 3):
        # Along one axis after the other: as the square window, but for the cost. Padding of a
        # pooling is half of its window at most, which is just enough.
        reach = min(pixels, mask.shape[axis] - 1)
        window, padding = [1, 1], [0, 0]
        window[axis - 2], padding[axis - 2] = 2 * reach + 1, reach
        mask = F.max_pool2d(mask, window, stride=1, padding=padding)
    return mask


def blurred(mask: Tensor, radius: float) -> Tensor:
    """A mask with soft edges.

    Args:
        mask: ``[B, 1, H, W]``.
        radius: standard deviation of a Gaussian in pixels, which Pillow approximates, in steps of
            1/255; 0 leaves the mask as it is.
    """
    if radius == 0:
        return mask
    return torch.stack([_blurred(each, radius) for each in mask])


def _blurred(mask: Tensor, radius: float) -> Tensor:
    """``[1, H, W]``."""
    grey = Image.fromarray(mask[0].mul(255).round().to(torch.uint8).numpy())
    soft = grey.filter(ImageFilter.GaussianBlur(radius))
    return torch.from_numpy(np.asarray(soft, np.float32) / 255)[None]
