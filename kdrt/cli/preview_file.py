"""Previews in a file that a viewer can watch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from kdrt.cli.image_files import named_path
from kdrt.common.atomic_io import check_file
from kdrt.common.validation import MAX_SIDE
from kdrt.errors import OutputExistsError
from kdrt.images.output import SUFFIXES, save_image
from kdrt.vae.preview import PreviewStep


def preview_file(path: Path, *, overwrite: bool = False) -> Callable[[PreviewStep], None]:
    """A callback that keeps the newest previews in ``path``, side by side: whoever opens the file
    sees one step's or the next's, never half of one.

    The callback raises OutputError where the file cannot be written, and InvalidRequestError where
    the bundle has no previews.

    Args:
        path: the file, which the callback makes and then replaces at every call.
        overwrite: replace a file that is there before the first call too.

    Raises:
        OutputExistsError: a file is there, and ``overwrite`` is off.
        OutputError: the file cannot be written, or its suffix is unknown.
    """
    target = named_path(path, SUFFIXES)
    check_file(target)
    if not overwrite and os.path.lexists(target):
        raise OutputExistsError(
            f"--preview {path} is there, and every step would replace it; choose another name, or "
            "add --overwrite"
        )
    may_replace = overwrite

    def save(step: PreviewStep) -> None:
        nonlocal may_replace
        save_image(_side_by_side(step.preview()), target, overwrite=may_replace)
        may_replace = True

    return save


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    width, height = images[0].size
    images = images[: max(MAX_SIDE // width, 1)]  # a file holds no more
    row = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        row.paste(image, (index * width, 0))
    return row
