"""What people put in place of a pipeline's safety checker."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from kdrt.errors import InvalidRequestError
from kdrt.images.safety import SafetyChecker


class OwnChecker(SafetyChecker):
    """A function in place of the model's checker.

    Args:
        function: called with PIL images, it says of each whether it is flagged. One that has a
            ``clip_input`` is called as diffusers does, with ``clip_input`` None as there is no
            feature extractor here, and gives the images and the flags.
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
        """Nothing is bound."""

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each image is flagged.

        Raises:
            InvalidRequestError: the function says something else.
        """
        if self._as_diffusers:
            answer = self.function(images=list(images), clip_input=None)
            flags = answer[1] if isinstance(answer, (tuple, list)) and len(answer) == 2 else answer
        else:
            flags = self.function(list(images))
        if flags is None or isinstance(flags, bool):
            flags = [bool(flags)] * len(images)
        if not isinstance(flags, Sequence) or len(flags) != len(images):
            raise InvalidRequestError(
                f"pipe.safety_checker must say of each of {len(images)} images whether it is "
                f"flagged, and gave {flags!r}"
            )
        return [bool(flag) for flag in flags]


def as_checker(checker: object) -> SafetyChecker | None:
    """What was assigned to ``pipe.safety_checker``, to be called by the pipeline.

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
