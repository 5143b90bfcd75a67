"""What can be assigned to ``pipe.safety_checker`` in place of the model's checker."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError
from kdrt.images.safety import SafetyChecker

_BOOLS = (bool, np.bool_)


class OwnChecker(SafetyChecker):
    """A function in place of the model's checker.

    Args:
        function: called with a list of PIL images; returns for each whether it is flagged. If it
            takes a ``clip_input``, it is called as diffusers does, with ``clip_input=None``, and
            returns the images and the flags.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        kinds: Mapping[str, inspect.Parameter] = {}
        with contextlib.suppress(TypeError, ValueError):  # some functions tell nothing
            kinds = inspect.signature(function).parameters
        self._as_diffusers = "clip_input" in kinds or (
            "images" in kinds and any(k.kind is k.VAR_KEYWORD for k in kinds.values())
        )

    def release(self) -> None:
        """Does nothing: a function binds no buffers."""

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each image is flagged.

        Raises:
            InvalidRequestError: the function returns something else.
        """
        if self._as_diffusers:
            flags = self.function(images=list(images), clip_input=None)
            is_pair = isinstance(flags, (tuple, list)) and len(flags) == 2
            if is_pair and not isinstance(flags[0], _BOOLS):  # not the flags of two images
                # As in diffusers, None instead of flags is a checker that is turned off.
                flags = False if flags[1] is None else flags[1]
        else:
            flags = self.function(list(images))
        if isinstance(flags, _BOOLS):
            flags = [flags] * len(images)
        if (
            not isinstance(flags, Sequence)
            or len(flags) != len(images)
            or not all(isinstance(flag, _BOOLS) for flag in flags)
        ):
            raise InvalidRequestError(
                f"pipe.safety_checker must say of each of {len(images)} images whether it is "
                f"flagged, True or False, and gave {excerpt(flags)}"
            )
        return [bool(flag) for flag in flags]


def as_checker(checker: object) -> SafetyChecker | None:
    """The checker for a value that was assigned to ``pipe.safety_checker``.

    Raises:
        InvalidRequestError: it cannot be one.
    """
    if checker is None or isinstance(checker, SafetyChecker):
        return checker
    if not callable(checker) or hasattr(checker, "parameters"):
        raise InvalidRequestError(
            "pipe.safety_checker takes None, which turns it off, or a function that says of PIL "
            f"images which are flagged, not {type(checker).__name__}; a network becomes part of a "
            "bundle when the model is exported with it"
        )
    return OwnChecker(checker)
