"""Previews in a file that a viewer can watch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from kdrt.common.validation import MOST_SIDE
from kdrt.images.output import save_image
from kdrt.vae.preview import PreviewStep


def preview_file(path: Path) -> Callable[[PreviewStep], None]:
    """A callback that keeps the newest previews in ``path``, side by side: whoever opens the file
    sees one step's or the next's, never half of one.

    The callback raises OutputError where the file cannot be written, and InvalidRequest where the
    bundle has no previews.
    """

    def save(step: PreviewStep) -> None:
        save_image(_side_by_side(step.preview()), path)

    return save


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    pictures = pictures[: max(MOST_SIDE // width, 1)]  # a file holds no more
    row = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        row.paste(picture, (index * width, 0))
    return row
