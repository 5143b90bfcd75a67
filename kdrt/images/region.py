"""A prompt for a part of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A separate prompt for a part of an image; see :mod:`kdrt.denoise.regional`.

    Attributes:
        prompt: what to draw there.
        mask: where the region is: white belongs to it, and grey counts in part. A PIL image, an
            array ``[H, W]`` or a tensor ``[1, H, W]``, of any size; see :mod:`kdrt.images.input`.
            With ``inpaint_padding``, the mask is for the whole image.
        weight: how much the prompt counts, beside other regions and ``region_base_weight``; above
            0.
    """

    prompt: str
    mask: object
    weight: float = 1.0
