"""Previews in a file that a viewer can watch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from kdrt.cli.image_files import named_path
from kdrt.common.atomic_io import check_file
from kdrt.common.validation import MAX_SIDE
from kdrt.images.output import SUFFIXES, save_image
from kdrt.vae.preview import PreviewStep


def preview_file(path: Path) -> Callable[[PreviewStep], None]:
    """A callback that keeps the newest previews in ``path``, side by side: whoever opens the file
    sees one step's or the next's, never half of one. What was there is replaced.

    The callback raises OutputError where the file cannot be written, and InvalidRequestError where
    the bundle has no previews.

    Raises:
        OutputError: the file cannot be written, or its suffix is unknown.
    """
    target = named_path(path, SUFFIXES)
    check_file(target)

    def save(step: PreviewStep) -> None:
        save_image(_side_by_side(step.preview()), target)

    return save


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    width, height = images[0].size
    images = images[: max(MAX_SIDE // width, 1)]  # a file holds no more
    row = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        row.paste(image, (index * width, 0))
    return row
