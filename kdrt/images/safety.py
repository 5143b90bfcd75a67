"""The optional look at an image before it is handed out: the model's safety checker, and a hook
of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdrt.common.lru import LruCache
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError, NonFiniteError
from kdrt.images.input import clip_pixels
from kdrt.images.input import read_images as read_images
from kdrt.images.output import to_images
from kdrt_engines import Binding, Engine

ImageFilter = Callable[[Image.Image], Image.Image | bool | None]
"""A function that is called with every image. It returns an image to show instead, False to black
the image out, or None or True to keep it."""

_BINDINGS = 2
_CARE = 0.01
"""How much sooner an image counts as flagged if it comes near one of the special concepts."""


class SafetyChecker:
    """The checker that Stable Diffusion 1 and 2 were published with, on an engine.

    Args:
        engine: the ``safety_checker`` component.
        turn: a context that is entered for each run, because the buffers hold one run at a time.
    """

    def __init__(
        self,
        engine: Engine,
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._engine = engine
        self._turn = turn
        self._size = int(engine.spec.input("clip_input").shape[-1])
        self._bindings: LruCache[int, Binding] = LruCache(_BINDINGS)

    def release(self) -> None:
        """Free the bindings of the engine."""
        self._bindings.clear()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each image is flagged.

        Raises:
            NonFiniteError: a score is not finite, so the image cannot be judged.
        """
        with self._turn():
            return self._flags(images)

    def _flags(self, images: Sequence[Image.Image]) -> list[bool]:
        binding = self._bindings.get(len(images), lambda: self._engine.bind(B=len(images)))
        binding.inputs["clip_input"].copy_(clip_pixels(images, self._size))
        binding.run()
        special = binding.outputs["special_scores"].cpu()
        concept = binding.outputs["concept_scores"].cpu()
        if not (special.isfinite().all() and concept.isfinite().all()):
            raise NonFiniteError(
                "the safety checker gave scores that are not finite; export the model with "
                "--precision fp32 or bf16"
            )
        return [is_flagged(*scores) for scores in zip(special, concept, strict=True)]


def is_flagged(special: Tensor, concept: Tensor) -> bool:
    """The rule of the checker: an image is flagged if the score of a concept, rounded to
    thousandths, is above 0. If a special concept's score is above 0, all scores of concepts count
    0.01 more.

    Args:
        special: float32 ``[M]``, cosines less thresholds.
        concept: float32 ``[N]``, likewise.
    """
    near = bool((special.double().round(decimals=3) > 0).any())
    margin = _CARE if near else 0.0
    return bool(((concept.double() + margin).round(decimals=3) > 0).any())


def check_images(
    pixels: Tensor, checker: SafetyChecker | None, image_filter: ImageFilter | None
) -> tuple[Tensor, list[bool]]:
    """Apply the safety checker and the user's filter to images.

    Args:
        pixels: float32 ``[B, 3, H, W]`` in about [-1, 1].
        checker: blacks out what it flags; None to skip it.
        image_filter: called with the images that the checker let pass; None to skip it.

    Returns:
        The pixels, and for each image whether it was blacked out.

    Raises:
        InvalidRequestError: the filter returned something that an `ImageFilter` must not return.
    """
    images = to_images(pixels, "pil")
    flags = [False] * len(pixels) if checker is None else checker(list(images))
    result = pixels.clone()
    for index, image in enumerate(images):
        if not flags[index] and image_filter is not None:
            answer = _checked(image_filter(image))
            if isinstance(answer, Image.Image):
                result[index] = _pixels(answer, result[index])
            else:
                flags[index] = not answer
        if flags[index]:
            result[index] = -1.0
    return result, flags


def _checked(answer: object) -> Image.Image | bool:
    """What a filter returned. Nothing else passes: it may have been meant as a refusal."""
    if answer is None:
        return True
    if isinstance(answer, (bool, np.bool_)):
        return bool(answer)
    if isinstance(answer, Image.Image):
        return answer
    raise InvalidRequestError(
        f"image_filter returned {excerpt(answer)}; it must return a PIL image to show instead, "
        "False to black the image out, or None or True to keep it"
    )


def _pixels(image: Image.Image, like: Tensor) -> Tensor:
    height, width = like.shape[1:]
    return read_images("the image of image_filter", image, 1, height, width)[0].to(like)
