"""Inpainting the masked part of an image alone: cut out, made at the model's size, and put back.

A small part of a large image is made with as much detail as a whole image has, and the result is as
large as the image was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Box(NamedTuple):
    """A part of an image in pixels; ``right`` and ``bottom`` are just outside of it."""

    left: int
    top: int
    right: int
    bottom: int

    def cut(self, planes: Tensor) -> Tensor:
        """A view of that part of ``[..., H, W]``."""
        return planes[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class MaskedPart:
    """The images that a part was cut out of, one part of each.

    Attributes:
        pixels: float32 ``[B, 3, H, W]`` in [-1, 1], whole.
        mask: float32 ``[B, 1, H, W]`` in [0, 1], whole.
        boxes: of B parts.
    """

    pixels: Tensor
    mask: Tensor
    boxes: tuple[Box, ...]

    @classmethod
    def around(
        cls, pixels: Tensor, mask: Tensor, padding: int, height: int, width: int
    ) -> MaskedPart | None:
        """The parts that hold all that is masked; None if nothing is masked in one image.

        Args:
            pixels, mask: see the class.
            padding: see :func:`box_around`.
            height, width: that the parts will be made at.
        """
        boxes = [box_around(each, padding, height, width) for each in mask[:, 0]]
        found = tuple(box for box in boxes if box is not None)
        return cls(pixels, mask, found) if len(found) == len(boxes) else None

    def cut(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Pixels and mask of the parts, brought to ``height`` by ``width`` (Lanczos)."""
        low, high = -1.0, 1.0
        pixels = [
            resized(box.cut(each), height, width).clamp_(low, high)
            for box, each in zip(self.boxes, self.pixels, strict=True)
        ]
        masks = [
            resized(box.cut(each), height, width).clamp_(0, 1)
            for box, each in zip(self.boxes, self.mask, strict=True)
        ]
        return torch.stack(pixels), torch.stack(masks)

    def put_back(self, parts: Tensor, *, opaque: bool = False) -> Tensor:
        """The whole images with the parts ``[B, 3, h, w]`` in their places, blended by the mask;
        where that is 0 no pixel changes.

        Args:
            parts: float32 in about [-1, 1].
            opaque: not blended where the mask is above 0.

        Returns:
            float32 ``[B, 3, H, W]``, on the device of the parts.
        """
        whole = self.pixels.clone()
        made: Sequence[Tensor] = parts.float().cpu().unbind()
        for image, part, mask, box in zip(whole, made, self.mask, self.boxes, strict=True):
            place, strength = box.cut(image), box.cut(mask)
            fitted = resized(part, box.bottom - box.top, box.right - box.left)
            blended = fitted if opaque else torch.lerp(place, fitted, strength)
            place.copy_(torch.where(strength == 0, place, blended))
        return whole.to(parts.device)


def box_around(mask: Tensor, padding: int, height: int, width: int) -> Box | None:
    """The part of an image that holds all that is masked, in the proportions of ``height`` to
    ``width`` where there is room.

    Args:
        mask: ``[H, W]``; what is above 0 is masked.
        padding: pixels around it that belong to the part too.
        height, width: that it will be made at.

    Returns:
        A box inside of the image; None if nothing is masked.
    """
    rows, columns = (mask > 0).any(1).nonzero(), (mask > 0).any(0).nonzero()
    if not len(rows):
        return None
    most_rows, most_columns = mask.shape
    top, bottom = _padded(rows, padding, most_rows)
    left, right = _padded(columns, padding, most_columns)
    if (right - left) * height > (bottom - top) * width:
        high = math.ceil((right - left) * height / width)
        top, bottom = _widened(top, bottom, high, most_rows)
    else:
        wide = math.ceil((bottom - top) * width / height)
        left, right = _widened(left, right, wide, most_columns)
    return Box(left, top, right, bottom)


def resized(
    planes: Tensor,
    height: int,
    width: int,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Tensor:
    """float32 ``[C, h, w]`` as ``[C, height, width]``, a copy. Lanczos may overshoot a little."""
    if planes.shape[-2:] == (height, width):
        return planes.clone()
    return torch.stack(
        [
            torch.from_numpy(
                np.array(
                    Image.fromarray(plane.contiguous().numpy()).resize((width, height), resampling)
                )
            )
            for plane in planes
        ]
    )


def _padded(indices: Tensor, padding: int, most: int) -> tuple[int, int]:
    first, last = int(indices[0]), int(indices[-1])
    return max(0, first - padding), min(most, last + 1 + padding)


def _widened(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    """A range of at least ``length`` about the same middle, within 0 and ``most``."""
    length = min(max(length, high - low), most)
    low = min(max(0, (low + high - length) // 2), most - length)
    return low, low + length
