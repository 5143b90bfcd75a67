"""SDXL's size conditioning: what it was told of each training image's size and crop."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kdrt.common.validation import check_int_pair

Size = tuple[int, int]
TimeIds = tuple[float, ...]
"""Six numbers, for the refiner five."""

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What SDXL's refiner is told of the image's beauty, from 1 to 10, where nothing is asked for."""


@dataclass(frozen=True, kw_only=True)
class SizeConditioning:
    """Sizes and crops to pretend, as (height, width) and (top, left) in pixels.

    Sizes that are None are the image's own. The negative prompt gets the same values, unless
    one of its own is given: then it is used, with the positive sizes for those that are not.
    """

    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None

    def given(self) -> list[str]:
        """The names of the values that are not the default."""
        given = ((f, getattr(self, f.name)) for f in fields(self))
        return [
            field.name
            for field, value in given
            if value is not None and check_int_pair(field.name, value) != field.default
        ]

    def time_ids(self, height: int, width: int) -> tuple[TimeIds, TimeIds]:
        """``(*original_size, *crops_coords_top_left, *target_size)`` for the positive and for
        the negative prompt of an image of ``height`` by ``width`` pixels.

        Raises:
            InvalidRequestError: a value is not two whole numbers.
        """
        own = (height, width)
        original = self._size("original_size", own)
        crop = self._size("crops_coords_top_left", (0, 0))
        target = self._size("target_size", own)
        positive = (*original, *crop, *target)
        if not any(name.startswith("negative") for name in self.given()):
            return positive, positive
        return positive, (
            *self._size("negative_original_size", original),
            *self._size("negative_crops_coords_top_left", crop),
            *self._size("negative_target_size", target),
        )

    def refiner_time_ids(
        self, height: int, width: int, score: float, negative_score: float
    ) -> tuple[TimeIds, TimeIds]:
        """What SDXL's refiner takes: ``(*original_size, *crops_coords_top_left,
        aesthetic_score)``, with an aesthetic score in place of the target size.

        Raises:
            InvalidRequestError: a value is not two whole numbers.
        """
        positive, negative = self.time_ids(height, width)
        return (*positive[:4], score), (*negative[:4], negative_score)

    def _size(self, name: str, default: Size) -> Size:
        value = getattr(self, name)
        return default if value is None else check_int_pair(name, value)
