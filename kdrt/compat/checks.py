"""Checks of a call's arguments, with the messages of the removed pipelines."""

from __future__ import annotations

from torch import Tensor

from kdrt.common.validation import MAX_SIDE, check_callable, check_int
from kdrt.errors import InvalidRequestError


def check_size(height: int, width: int) -> None:
    """Raise InvalidRequestError unless both sides are multiples of 8."""
    check_int("height", height, 8, MAX_SIDE)
    check_int("width", width, 8, MAX_SIDE)
    if height % 8 or width % 8:
        raise InvalidRequestError(
            f"`height` and `width` have to be divisible by 8 but are {height} and {width}."
        )


def check_callback(callback: object, callback_steps: object) -> None:
    """Raise InvalidRequestError unless this can be called, every so many steps."""
    if callback_steps is not None:
        check_int("callback_steps", callback_steps, 1)
    if callback is not None:
        check_callable("callback", callback)


def check_exclusive(given: dict[str, object]) -> None:
    """Raise InvalidRequestError if more than one of these arguments is given."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequestError(f"give only one of {' and '.join(names)}")


def check_prompt(name: str, prompt: object, embeds: Tensor | None) -> None:
    """Raise InvalidRequestError unless there is a prompt, of a type a prompt has, or embeddings."""
    if prompt is None and embeds is None:
        raise InvalidRequestError(f"Provide either `{name}` or `{name}_embeds`; both are missing.")
    if prompt is not None and not isinstance(prompt, (str, list)):
        raise InvalidRequestError(
            f"`{name}` has to be of type `str` or `list` but is {type(prompt)}"
        )


def check_shapes(positive: Tensor | None, negative: Tensor | None) -> None:
    """Raise InvalidRequestError if both are given and differ in shape."""
    if positive is not None and negative is not None and positive.shape != negative.shape:
        raise InvalidRequestError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape, but got "
            f"{list(positive.shape)} and {list(negative.shape)}"
        )
