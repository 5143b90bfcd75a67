"""SDXL's size conditioning: what it was told of each training image's size and crop.

A request may pretend other sizes and crops, as (height, width) and (top, left) in pixels. Sizes
that are None are the image's own. The negative prompt gets the same values, unless one of its own
is given: then it is used, with the positive sizes for those that are not.
"""

from __future__ import annotations

from kdrt.common.validation import check_int_pair
from kdrt.request.fields import Request, Size

TimeIds = tuple[float, ...]
"""Six numbers, for the refiner five."""

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What SDXL's refiner is told of the image's beauty, from 1 to 10, where nothing is asked for."""

_CORNER = (0, 0)
"""The crop of an image that was not cropped."""

_POSITIVE = ("original_size", "crops_coords_top_left", "target_size")
_NEGATIVE = tuple(f"negative_{name}" for name in _POSITIVE)


def given_sizes(request: Request) -> list[str]:
    """The names of the sizes and crops that are not the default.

    Raises:
        InvalidRequestError: a value is not two whole numbers.
    """
    return [name for name in (*_POSITIVE, *_NEGATIVE) if _given(request, name) is not None]


def time_ids(request: Request, height: int, width: int) -> tuple[TimeIds, TimeIds]:
    """``(*original_size, *crops_coords_top_left, *target_size)`` for the positive and for the
    negative prompt of an image of ``height`` by ``width`` pixels.

    Raises:
        InvalidRequestError: a value is not two whole numbers.
    """
    own = (height, width)
    positive = [_given(request, name) for name in _POSITIVE]
    original, crop, target = (
        value or default for value, default in zip(positive, (own, _CORNER, own), strict=True)
    )
    negative = [_given(request, name) for name in _NEGATIVE]
    if not any(negative):
        return (*original, *crop, *target), (*original, *crop, *target)
    others = (
        value or default
        for value, default in zip(negative, (original, _CORNER, target), strict=True)
    )
    return (*original, *crop, *target), tuple(number for pair in others for number in pair)


def refiner_time_ids(
    request: Request, height: int, width: int, score: float, negative_score: float
) -> tuple[TimeIds, TimeIds]:
    """What SDXL's refiner takes: ``(*original_size, *crops_coords_top_left, aesthetic_score)``,
    with an aesthetic score in place of the target size.

    Raises:
        InvalidRequestError: a value is not two whole numbers.
    """
    positive, negative = time_ids(request, height, width)
    return (*positive[:4], score), (*negative[:4], negative_score)


def _given(request: Request, name: str) -> Size | None:
    """A value that is not the default; None if it is."""
    value: object = request.get(name)
    if value is None:
        return None
    pair = check_int_pair(name, value)
    return None if "crops" in name and pair == _CORNER else pair
