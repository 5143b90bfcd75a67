"""The images of a request, as what is drawn for them is brought to their size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.images.masked_part import MaskedPart, resized


@dataclass(frozen=True)
class ImagesToMake:
    """What control images and masks of regions are brought to.

    Attributes:
        count: B.
        height, width: in pixels.
        part: of which they are parts; then what is drawn for them is of the whole, as the mask is.
    """

    count: int
    height: int
    width: int
    part: MaskedPart | None = None

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of what is drawn for them."""
        if self.part is None:
            return self.height, self.width
        _, _, height, width = self.part.pixels.shape
        return height, width

    def parts_of(self, drawn: Tensor) -> Tensor:
        """What is drawn on the whole, where the images are.

        Args:
            drawn: float32 ``[n, C, *whole]`` in [0, 1], each for B / n images in a row.

        Returns:
            ``[m, C, H, W]``; m is n, or B if the images are parts, each of which has a place of its
            own.
        """
        if self.part is None:
            return drawn
        each = drawn.repeat_interleave(self.count // len(drawn), dim=0)
        cut = [
            resized(box.cut(planes), self.height, self.width)
            for box, planes in zip(self.part.boxes, each, strict=True)
        ]
        return torch.stack(cut).clamp_(0, 1)
