"""A prompt for a part of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A prompt of its own for a part of an image; see :mod:`kdrt.denoise.regional`.

    Attributes:
        prompt: what to draw there.
        mask: where: white is the region, grey counts in part. PIL, an array ``[H, W]`` or a tensor
            ``[1, H, W]`` of any size; see :mod:`kdrt.images.input`. With ``inpaint_padding`` it is
            of the whole image.
        weight: how much the prompt counts where regions overlap, above 0.
    """

    prompt: str
    mask: object
    weight: float = 1.0
