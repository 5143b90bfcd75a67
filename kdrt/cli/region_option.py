"""A region of the command line, and of a request in JSON: the file of its mask, and its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from kdrt.common.paths import user_path
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError
from kdrt.images.region import Region


def region_option(text: str) -> Region:
    """The region of ``MASK[:WEIGHT]=PROMPT``, with a path in place of its mask.

    Raises:
        InvalidRequestError: it is something else.
    """
    file, equals, prompt = text.partition("=")
    if not (file and equals and prompt.strip()):
        raise InvalidRequestError(
            "--region takes a mask, perhaps its weight, and a prompt, as in "
            f"'left.png=a red circle' or 'left.png:0.5=a red circle', not '{text}'"
        )
    path, colon, weight = file.rpartition(":")
    if colon and path:
        with suppress(ValueError):
            return Region(prompt, user_path(path), float(weight))
    return Region(prompt, user_path(file))


def json_regions(value: object, folder: Path) -> list[Region]:
    """The regions of a JSON list of objects, with paths in place of masks.

    Args:
        value: of ``regions``.
        folder: where names of files begin.

    Raises:
        InvalidRequestError: it is something else.
    """
    if not isinstance(value, list) or not all(map(_is_region, value)):
        raise InvalidRequestError(
            'regions must be a list of objects such as {"prompt": "a red circle", "mask": '
            f'"left.png", "weight": 1}}, where the mask is a file, not {excerpt(value)}'
        )
    return [Region(**{**each, "mask": folder / user_path(each["mask"])}) for each in value]


def _is_region(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"prompt", "mask"} <= value.keys() <= {"prompt", "mask", "weight"}
        and isinstance(value["mask"], str)
    )


def with_masks(regions: Sequence[Region], read: Callable[[Path], Image.Image]) -> list[Region]:
    """The same with images in place of the paths of masks."""
    return [
        replace(region, mask=read(region.mask)) if isinstance(region.mask, Path) else region
        for region in regions
    ]


def mask_files(regions: Sequence[Region]) -> list[Path]:
    """The masks that are not read yet."""
    return [region.mask for region in regions if isinstance(region.mask, Path)]
