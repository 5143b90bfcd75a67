"""The size of an image as the text of an option."""

from __future__ import annotations

import re


def height_and_width(text: str | None) -> tuple[int | None, int | None]:
    """Height and width in pixels from ``512x768``; None is none said.

    Raises:
        InvalidRequestError: it is not two numbers.
    """
    from kdrt.errors import InvalidRequestError

    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if match is None:
        raise InvalidRequestError(
            f"'{text}' is no size; write height and width in pixels, as in --at 512x768"
        )
    return int(match[1]), int(match[2])
