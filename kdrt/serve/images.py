"""Images that clients send, under limits, and images that they get."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Literal

from PIL import Image, ImageOps

from kdrt.images.files import readable
from kdrt.images.output import image_bytes
from kdrt.serve.errors import LimitError, RequestError

ImageFormat = Literal["png", "jpeg", "webp"]

_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pillow knows many more formats, some of which are programs or call some."""

_DATA_URL = re.compile(
    r"data:[a-z0-9.+/-]{0,100}(;[a-z0-9.+_-]{1,40}=[^;,]{0,100}){0,5};base64,", re.IGNORECASE
)

_SPACE = b" \t\r\n"
"""What tools write into base64 to break its lines."""


def decoded_base64(name: str, text: str) -> bytes:
    """The bytes of base64, which may be in several lines, or of a data URL.

    Raises:
        RequestError: it is something else, such as the address of a file.
    """
    prefix = _DATA_URL.match(text)
    encoded = text[prefix.end() :] if prefix else text
    if not prefix and re.match(r"[a-z]{2,10}:", text, re.IGNORECASE):
        raise RequestError(
            f"{name} must be the image itself, as base64 or as a data URL: addresses are not "
            "fetched",
            name,
        )
    try:
        return base64.b64decode(encoded.encode("ascii").translate(None, _SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} must be base64 or a data URL with base64", name) from None


def read_image(name: str, data: bytes, most_pixels: int) -> Image.Image:
    """An image from the bytes of its file, upright; of several frames the first.

    Args:
        name: of the field, for errors.
        data: PNG, JPEG, WebP, GIF or BMP.
        most_pixels: that it may have.

    Raises:
        LimitError: it has more pixels; they were not decoded.
        RequestError: it is no image, or damaged.
    """
    try:
        with readable(name):
            image = Image.open(io.BytesIO(data), formats=_READ)
        if image.width * image.height > most_pixels:
            raise LimitError(
                f"{name} has {image.width}x{image.height} pixels, and this server reads images of "
                f"up to {most_pixels}",
                name,
            )
        with readable(name):
            image.load()
            return ImageOps.exif_transpose(image)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error), name) from None


class SeveralImages:
    """Reads the images of one field, which together may have as many pixels as one image alone: a
    file of few bytes can hold very many.

    Args:
        field: for errors.
        most_pixels: of all of them.
    """

    def __init__(self, field: str, most_pixels: int) -> None:
        self._field, self._most_pixels = field, most_pixels
        self._pixels = 0

    def read(self, name: str, text: str) -> Image.Image:
        """The next image.

        Args:
            name: of this one, for errors.
            text: base64 or a data URL.

        Raises:
            LimitError: it has too many pixels, or all that were read have.
            RequestError: it is no image, or damaged.
        """
        image = read_image(name, decoded_base64(name, text), self._most_pixels)
        self._pixels += image.width * image.height
        if self._pixels > self._most_pixels:
            raise LimitError(
                f"the images of {self._field} have more than {self._most_pixels} pixels together, "
                "and this server reads no more: send smaller ones",
                self._field,
            )
        return image


def mask_of(image: Image.Image) -> Image.Image:
    """What OpenAI's clients mean by a mask, as kdrt's, where white is repainted: with
    transparency, what is transparent is repainted; without, white is."""
    if not image.has_transparency_data:
        return image
    alpha = image.convert("RGBA").getchannel("A")
    return ImageOps.invert(alpha)


def base64_of(
    image: Image.Image,
    kind: ImageFormat,
    infotext: object = None,
    *,
    quality: int | None = None,
) -> str:
    """An image as base64 of its file; see `kdrt.images.output.image_bytes`."""
    return base64.b64encode(image_bytes(image, kind, infotext, quality=quality)).decode()
