"""Opening image files, with every failure of Pillow as one sentence.

Needs no torch, so that ``kdrt info`` starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file; its pixels are not read yet. Only regular files are: anything else may
    never end.

    Raises:
        InvalidRequestError: there is no such file, or it is no image that Pillow reads.
    """
    file = user_path(path)
    if file.exists() and not file.is_file():
        raise InvalidRequestError(f"cannot read {path}: it is not a file")
    with readable(str(path)):
        image = Image.open(file)
        if image.format == "EPS":  # a program, which Pillow has Ghostscript run
            raise InvalidRequestError(f"cannot read {path}: PostScript is not read")
    return image


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever Pillow raises on damaged files as a sentence: it has no exception of its own for
    that, and hands on those of many decoders."""
    try:
        yield
    except InvalidRequestError:
        raise
    except Exception as error:
        system = error.strerror if isinstance(error, OSError) else None
        raise InvalidRequestError(f"cannot read {name}: {system or _reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or damaged (not an image that Pillow knows)"
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"it is no image, or damaged, or too large ({said}); an editor may save it anew"
