"""Several images on one sheet, each with its label below."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdrt.common.validation import check_int, check_texts
from kdrt.errors import InvalidRequestError
from kdrt.images.input import pil_image, to_rgb
from kdrt.images.output import Images

MAX_SHEET_SIDE = 8192
"""In pixels: more than a screen shows, and what every viewer opens."""

_GAP = 8
_LINES = 3
_LABEL_WIDTH = 128
"""The least width of a cell with a label: about twenty letters a line."""
_MIN_CELL = 16
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")
"""For labels that are not ASCII: the font that comes with Pillow has no more."""

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def image_grid(
    images: Images | Sequence[Image.Image | NDArray[Any] | Tensor] | Image.Image,
    labels: Sequence[str] | None = None,
    *,
    columns: int | None = None,
) -> Image.Image:
    """Put images on one white sheet, row by row.

    Args:
        images: the contents of :attr:`kdrt.Result.images`, with any ``output_type`` except
            ``"latent"``; a list of PIL images, arrays ``[H, W, 3]`` or tensors ``[3, H, W]`` in
            [0, 1]; or one image. They are scaled down if a side of the sheet would exceed
            `MAX_SHEET_SIDE` pixels.
        labels: a text for each image, written below it on up to three lines. Text that is not ASCII
            is drawn with a system font if there is one, and otherwise spelled in ASCII.
        columns: images in a row; None makes about as many rows as columns.

    Returns:
        An RGB image.

    Raises:
        InvalidRequestError: an argument is wrong, or there are more images than fit.
    """
    images = _as_list(images)
    if labels is not None and len(check_texts("labels", labels)) != len(images):
        raise InvalidRequestError(
            f"{len(labels)} labels for {len(images)} images: give one for each"
        )
    size = max(image.width for image in images), max(image.height for image in images)
    layout = sheet_layout(len(images), size, columns=columns, labelled=labels is not None)
    font, texts = _drawable(labels or [], _font_size(layout.width))
    sheet = Image.new("RGB", layout.sheet, "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = layout.corner(index)
        small = layout.shrunk(image)
        sheet.paste(small, (left + (layout.width - small.width) // 2, top))
        if texts:
            text = _wrapped(texts[index], font, layout.width)
            place = left, top + layout.height + _GAP // 2
            draw.multiline_text(place, text, fill="black", font=font, spacing=4)
    return sheet


def _as_list(images: object) -> list[Image.Image]:
    listed: Sequence[object] = ()
    if isinstance(images, (np.ndarray, Tensor)):
        listed = list(images) if images.ndim > 3 else [images]
    elif isinstance(images, Image.Image):
        listed = [images]
    elif isinstance(images, Sequence):
        listed = images
    if not listed or not all(
        isinstance(image, (Image.Image, np.ndarray, Tensor)) for image in listed
    ):
        raise InvalidRequestError(
            "images must be a list of at least one PIL image, array or tensor"
        )
    return [
        image if isinstance(image, Image.Image) else pil_image("an image", image)
        for image in listed
    ]


@dataclass(frozen=True)
class SheetLayout:
    """Where the images of a sheet are.

    Attributes:
        count: of the images.
        columns: images in a row.
        width, height: of the largest image, in pixels, and at least of a line of its label.
        labelled: whether there is room for labels.
    """

    count: int
    columns: int
    width: int
    height: int
    labelled: bool

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of an image with its label and the gap to the next."""
        below = _label_height(self.width) if self.labelled else 0
        return self.width + _GAP, self.height + below + _GAP

    @property
    def sheet(self) -> tuple[int, int]:
        """Width and height of the whole."""
        rows = math.ceil(self.count / self.columns)
        return self.columns * self.cell[0] + _GAP, rows * self.cell[1] + _GAP

    def corner(self, index: int) -> tuple[int, int]:
        """The left and the upper edge of an image."""
        row, column = divmod(index, self.columns)
        return _GAP + column * self.cell[0], _GAP + row * self.cell[1]

    def shrunk(self, image: Image.Image) -> Image.Image:
        """A copy of an image in RGB, scaled down to fit."""
        small = to_rgb("image", image).copy()
        small.thumbnail((self.width, self.height), Image.Resampling.LANCZOS)
        return small


def sheet_layout(
    count: int, size: tuple[int, int], *, columns: int | None = None, labelled: bool = True
) -> SheetLayout:
    """The layout of a sheet.

    Args:
        count: of the images.
        size: width and height of the largest, in pixels.
        columns: images in a row; None makes as many rows as columns.
        labelled: whether to leave room for labels.

    Raises:
        InvalidRequestError: there are more images than fit.
    """
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    columns = min(check_int("columns", columns, 1), count)
    rows = math.ceil(count / columns)
    least = _LABEL_WIDTH if labelled else _MIN_CELL
    below = _label_height(size[0]) if labelled else 0
    width = (MAX_SHEET_SIDE - _GAP) // columns - _GAP
    height = (MAX_SHEET_SIDE - _GAP) // rows - _GAP - below
    if width < least or height < _MIN_CELL:
        raise InvalidRequestError(
            f"{count} images in {columns} columns do not fit on a sheet of {MAX_SHEET_SIDE} by "
            f"{MAX_SHEET_SIDE} pixels; make several sheets"
        )
    scale = min(1, width / size[0], height / size[1])
    return SheetLayout(
        count, columns, max(least, int(size[0] * scale)), max(1, int(size[1] * scale)), labelled
    )


def _font_size(width: int) -> int:
    return min(max(width // 24, 12), 24)


def _label_height(width: int) -> int:
    return _GAP // 2 + _LINES * (_font_size(width) + 6)


def _drawable(labels: Sequence[str], size: int) -> tuple[_Font, list[str]]:
    """A font, and the labels in the characters that it has."""
    if not all(label.isascii() for label in labels):
        for name in _SYSTEM_FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, size), list(labels)
    return ImageFont.load_default(size), [_as_ascii(label) for label in labels]


def _as_ascii(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain.encode("ascii", errors="replace").decode()


def _wrapped(label: str, font: _Font, width: int) -> str:
    """A label in lines of at most ``width`` pixels; what is left out ends in three dots."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], " ".join(lines[_LINES - 1 :])]
    return "\n".join(_cut(line, font, width) for line in lines)


def _cut(line: str, font: _Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."
