"""A control image of the command line, and of a request in JSON: a file, and how it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from kdrt.common.paths import user_path
from kdrt.common.validation import did_you_mean, excerpt
from kdrt.errors import InvalidRequestError, UnknownFieldError
from kdrt.images.control import ControlImage

_NUMBERS = ("scale", "start", "end")
_NAMES = tuple(field.name for field in fields(ControlImage) if field.name != "image")
_ALLOWED = (
    "write FILE:0.8 or FILE:name=canny,scale=0.8,start=0,end=0.6,process=canny, of which each part "
    "may be left out"
)


def control_option(text: str) -> ControlImage:
    """The path and the options of ``FILE[:OPTIONS]``; an option that is a number alone is the
    scale.

    Raises:
        InvalidRequestError: what comes after an existing file is no option, or an option is given
            twice.
    """
    if not text.strip():
        raise InvalidRequestError(f"--control names no file; {_ALLOWED}")
    path, colon, options = text.rpartition(":")
    parts = _parts(options) if colon and path else None
    if parts is None:
        if not Path(text).exists() and (file := _file_before_colon(text)):
            raise InvalidRequestError(
                f"--control {text!r}: {text.removeprefix(file)[1:]!r} are no options; {_ALLOWED}"
            )
        return ControlImage(user_path(text))
    given = dict(parts)
    if len(given) < len(parts):
        raise InvalidRequestError(f"--control {text!r} says one thing twice; {_ALLOWED}")
    return ControlImage(user_path(path), **given)


def json_controls(value: object, folder: Path) -> list[ControlImage]:
    """The control images of a JSON object or of a list of them, with paths in place of images.

    Args:
        value: of ``control``.
        folder: where names of files begin.

    Raises:
        UnknownFieldError: an object has a key that means nothing.
        InvalidRequestError: it is something else.
    """
    listed = value if isinstance(value, list) else [value]
    return [_json_control(each, folder) for each in listed]


def with_images(
    controls: Sequence[ControlImage], read: Callable[[Path], Image.Image]
) -> list[ControlImage]:
    """The same with images in place of their paths."""
    return [replace(control, image=_read(control.image, read)) for control in controls]


def paths_of(control: ControlImage) -> list[Path]:
    """The files of a control image that are not read yet."""
    images = control.image if isinstance(control.image, list) else [control.image]
    return [image for image in images if isinstance(image, Path)]


def _read(image: Any, read: Callable[[Path], Image.Image]) -> Any:
    if isinstance(image, list):
        return [_read(each, read) for each in image]
    return read(image) if isinstance(image, Path) else image


def _json_control(value: object, folder: Path) -> ControlImage:
    if not isinstance(value, Mapping) or "image" not in value:
        raise InvalidRequestError(
            'control must be an object such as {"image": "edges.png", "scale": 0.8}, or a list of '
            f"them, not {excerpt(value)}"
        )
    for name in value:
        if name not in ("image", *_NAMES):
            meant = did_you_mean(name, _NAMES)
            raise UnknownFieldError(f"a control image has no field {excerpt(name)}{meant}")
    image = value["image"]
    names = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidRequestError(
            f"the image of control must be the name of a file, or a list of them, not "
            f"{excerpt(image)}"
        )
    paths = [folder / user_path(name) for name in names]
    rest = {name: value[name] for name in _NAMES if name in value}
    return ControlImage(paths if isinstance(image, list) else paths[0], **rest)


def _file_before_colon(text: str) -> str | None:
    """The shortest part of a text before a colon that is an existing file."""
    ends = [match.start() for match in re.finditer(":", text)]
    return next((text[:end] for end in ends if Path(text[:end]).is_file()), None)


def _parts(text: str) -> list[tuple[str, Any]] | None:
    """Names and values; None if the text is no option but part of a path."""
    parts: list[tuple[str, Any]] = []
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            name, value = "scale", name
        if name not in _NAMES or not value:
            return None
        try:
            parts.append((name, float(value) if name in _NUMBERS else value))
        except ValueError:
            return None
    return parts
