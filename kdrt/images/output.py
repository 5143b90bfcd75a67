"""From pixels to images, and from images to files that say how they were made."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from kdrt.common.atomic_io import new_file
from kdrt.common.literals import OutputType
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError, OutputError
from kdrt.images.input import pil_image, to_rgb
from kdrt.images.metadata import MetadataWarning

Images = list[Image.Image] | NDArray[np.float32] | Tensor

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SUFFIXES = tuple(_FORMATS)
"""What :func:`save_image` can write."""

_QUALITY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}
_MAX_COMMENT = 65_000
"""Bytes: a JPEG's segment holds 65533, EXIF's own structure included."""


def to_images(pixels: Tensor, output_type: OutputType) -> Images:
    """Convert decoded pixels to an output type.

    Args:
        pixels: float32 ``[B, 3, H, W]`` in about [-1, 1]; values outside are clipped.
        output_type: ``"pt"``: float32 ``[B, 3, H, W]`` in [0, 1], on the same device; ``"np"``:
            float32 ``[B, H, W, 3]`` in [0, 1]; ``"pil"``: a list of RGB images.
    """
    unit = (pixels / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    array: NDArray[np.float32] = unit.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array if output_type == "np" else [_pil(image) for image in array]


def save_image(
    image: Image.Image | NDArray[Any] | Tensor,
    path: str | os.PathLike[str],
    infotext: object = None,
    *,
    overwrite: bool = True,
) -> Path:
    """Save an image. The file appears complete or not at all.

    Args:
        image: a PIL image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]`` in [0, 1]. JPEG has no
            alpha, so a transparent image is put on white.
        path: a name that ends in .png, .jpg, .jpeg or .webp. Missing folders are made.
        infotext: a :class:`kdrt.Infotext` or a text, stored where web UIs look for it: the
            ``parameters`` text of a PNG, the EXIF user comment of a JPEG or WebP. JPEG has room
            for 32,000 characters; if the text is longer, the prompt in it is cut.
        overwrite: replace a file that exists.

    Returns:
        The path of the file.

    Raises:
        OutputExistsError: the file exists, and ``overwrite`` is off.
        OutputError: the suffix is unknown, or the file cannot be written.
        InvalidRequestError: the array or tensor is no image.

    Warns:
        MetadataWarning: the text was cut.
    """
    try:
        target = user_path(path)
    except InvalidRequestError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise OutputError(
            f"cannot save '{target.name}': the name must end in one of {', '.join(_FORMATS)}"
        )
    if not isinstance(image, Image.Image):
        image = pil_image("image", image)
    elif kind == "JPEG" or image.mode != "RGBA":
        image = image if kind == "PNG" or image.mode in ("L", "RGB") else to_rgb("image", image)
    options = _options(kind, infotext)
    try:
        with new_file(target, overwrite=overwrite) as partial, partial.open("xb") as file:
            image.save(file, kind, **options)
    except ValueError as error:  # a side that the format does not allow
        raise OutputError(f"cannot write {target}: {error}") from error
    return target


def image_bytes(
    image: Image.Image,
    kind: Literal["png", "jpeg", "webp"],
    infotext: object = None,
    *,
    quality: int | None = None,
) -> bytes:
    """The bytes of the file that :func:`save_image` would write.

    Args:
        image: RGB.
        kind: the format.
        infotext: see :func:`save_image`.
        quality: of JPEG and WebP, 1 to 100; None is 95.

    Raises:
        OutputError: a side is longer than the format allows.

    Warns:
        MetadataWarning: the text was cut.
    """
    data = io.BytesIO()
    options = _options(kind.upper(), infotext)
    if quality is not None and kind != "png":
        options["quality"] = quality
    try:
        image.save(data, kind.upper(), **options)
    except ValueError as error:
        raise OutputError(f"cannot make a {kind} of this image: {error}") from error
    return data.getvalue()


def read_infotext(path: str | os.PathLike[str]) -> str | None:
    """The text that :func:`save_image` or a web UI stored in an image; None if there is none.
    ``kdrt.images.infotext.parse_infotext`` splits it into its settings.

    Raises:
        InvalidRequestError: there is no such file, it is no image, or it is damaged.
    """
    from kdrt.images.metadata import PARAMETERS, read_texts

    return read_texts(path).get(PARAMETERS)


def _options(kind: str, infotext: object) -> dict[str, Any]:
    """What Pillow is told of a file: its quality and its text."""
    options: dict[str, Any] = dict(_QUALITY.get(kind, {}))
    if infotext is None:
        return options
    # Names of files, which are part of the text, need not be text.
    text = str(infotext).encode("utf-8", errors="replace").decode()
    return options | _metadata(kind, text)


def _metadata(kind: str, text: str) -> dict[str, Any]:
    from kdrt.images.metadata import EXIF_IFD, PARAMETERS, UNICODE, USER_COMMENT

    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text(PARAMETERS, text)
        return {"pnginfo": info}
    exif = Image.Exif()
    content = text.encode("utf-16-be")
    if kind == "JPEG" and len(content) > _MAX_COMMENT:
        content = _shortened(text)
        warnings.warn(
            f"a JPEG holds {_MAX_COMMENT // 2} characters of infotext, and these are "
            f"{len(text)}: the prompt in it is cut; PNG and WebP hold all",
            MetadataWarning,
            stacklevel=3,
        )
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + content
    return {"exif": exif}


def _shortened(text: str) -> bytes:
    """In UTF-16, without the end of the prompts; the last line holds the settings."""
    prompts, _, settings = text.rpartition("\n")
    rest = f"…\n{settings}".encode("utf-16-be")
    kept = prompts.encode("utf-16-be")[: max(_MAX_COMMENT - len(rest), 0)]
    # No half of a character at either end.
    return (kept + rest)[:_MAX_COMMENT].decode("utf-16-be", errors="ignore").encode("utf-16-be")


def _pil(image: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))
