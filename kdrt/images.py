"""From pixels to pictures, and from pictures to files that say how they were made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from kdrt.errors import OutputError
from kdrt.outputs import new_file

OutputType = Literal["pil", "np", "pt", "latent"]

Images = list[Image.Image] | NDArray[np.float32] | Tensor

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SUFFIXES = tuple(_FORMATS)
"""What :func:`save_image` can write."""

_QUALITY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}
_TEXT_KEY = "parameters"
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_UNICODE = b"UNICODE\0"


def to_images(pixels: Tensor, output_type: OutputType) -> Images:
    """Turn decoded pixels into what was asked for.

    Args:
        pixels: float32 ``[B, 3, H, W]`` in about [-1, 1]; what lies outside is clipped.
        output_type: ``"pt"``: float32 ``[B, 3, H, W]`` in [0, 1], on the same device; ``"np"``:
            float32 ``[B, H, W, 3]`` in [0, 1]; ``"pil"``: a list of RGB images.
    """
    unit = (pixels / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    array: NDArray[np.float32] = unit.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array if output_type == "np" else [_pil(image) for image in array]


def save_image(
    image: Image.Image | NDArray[np.float32] | Tensor,
    path: str | os.PathLike[str],
    parameters: object = None,
) -> Path:
    """Save a picture; the file appears complete or not at all.

    Args:
        image: a PIL image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]`` in [0, 1].
        path: ends in .png, .jpg, .jpeg or .webp. Missing folders are made.
        parameters: a :class:`kdrt.Parameters` or a text, stored where web UIs look for it: the
            ``parameters`` text of a PNG, the EXIF user comment of a JPEG or WebP.

    Raises:
        OutputError: an unknown suffix, or a place that cannot be written.
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise OutputError(
            f"cannot save '{target.name}': the name must end in one of {', '.join(_FORMATS)}"
        )
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).float().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = _pil(image)
    options: dict[str, Any] = dict(_QUALITY.get(kind, {}))
    if parameters is not None:
        options |= _metadata(kind, str(parameters))
    try:
        with new_file(target) as partial, partial.open("xb") as file:
            image.save(file, kind, **options)
    except ValueError as error:  # a null byte, or too much text for EXIF
        raise OutputError(f"cannot write {target}: {error}") from error
    return target


def read_parameters(path: str | os.PathLike[str]) -> str | None:
    """The text that :func:`save_image` stored, or None; ``kdrt.parameters.parse_parameters``
    takes it apart.

    Raises:
        OSError: there is no such file, or it is not a picture.
    """
    with Image.open(path) as image:
        text = image.info.get(_TEXT_KEY)
        if text is not None:
            return str(text)
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
    return None


def _metadata(kind: str, text: str) -> dict[str, Any]:
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text(_TEXT_KEY, text)
        return {"pnginfo": info}
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be")
    return {"exif": exif}


def _pil(image: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))
