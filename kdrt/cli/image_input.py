"""Images that a command is given."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from kdrt.images.files import open_image, readable


def read_image(path: Path) -> Image.Image:
    """The image in a file, with its pixels.

    Raises:
        InvalidRequestError: there is no such file, it is no image, or it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damage that it works around
        with open_image(path) as image, readable(str(path)):
            image.load()
            return image
