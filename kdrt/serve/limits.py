"""What a stranger may ask for: the work of one request is bounded before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from kdrt.adapters.lora_merge import Scale
from kdrt.bundle import LatentFacts
from kdrt.common.validation import check_int, excerpt
from kdrt.request.fields import Request
from kdrt.request.hires import larger_side
from kdrt.sampling import is_foreign
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError

_PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_STEPS = ("steps", "hires_steps")
_GRIDS = ("sigmas", "timesteps")
"""Fields that give the steps one by one."""

_MOST_SCALE = 16
"""Of a second pass."""

MAX_SCALE = 100.0
"""Of a LoRA, either way. Far larger ones make numbers that are not finite."""


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The most of each, for one request.

    Attributes:
        pixels: of an image.
        steps: of the sampler.
        images: of a request.
        prompt: characters of one prompt.
        input_pixels: of an image that a client sends, before it is resized; likewise of all images
            of one field together.
    """

    pixels: int = 2**21
    steps: int = 150
    images: int = 10
    prompt: int = 8_000
    input_pixels: int = 2**25

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            check_int(f"max_{name}", getattr(self, name), 1)

    def check(self, request: Request, facts: LatentFacts) -> int:
        """How many images a request is about. What is of a wrong type is left to the pipeline,
        which refuses it.

        Args:
            request: the fields that were given.
            facts: of the model; they hold the default size.

        Raises:
            LimitError: it asks for more than is allowed.
            UnsupportedError: the sampler is code of somebody else's.
        """
        given: Mapping[str, Any] = request
        if is_foreign(given.get("sampler")):
            raise UnsupportedError(
                "samplers of the k-diffusion package are not served: use kdrt's own",
                "sampler",
            )
        for name in _PROMPTS:
            self._check_texts(name, given.get(name))
        regions = given.get("regions")
        for region in regions if isinstance(regions, Sequence) else ():
            self._check_texts("regions", getattr(region, "prompt", None))
        self._check_steps(given)
        self._check_size(given, facts)
        return self._images(given)

    def check_scales(self, loras: Mapping[str, Scale] | None) -> None:
        """Refuse scales of LoRAs of which no image can come.

        Raises:
            RequestError: one is beyond :data:`MAX_SCALE`, or no number.
        """
        left: list[object] = [loras or {}]
        while left:
            scale = left.pop()
            if isinstance(scale, Mapping):
                left.extend(scale.values())
            elif isinstance(scale, int | float) and not -MAX_SCALE <= scale <= MAX_SCALE:
                raise RequestError(
                    f"the scale of a LoRA must be from -{MAX_SCALE:g} to {MAX_SCALE:g}, not "
                    f"{excerpt(scale)}",
                    "lora",
                )

    def _check_texts(self, name: str, value: object) -> None:
        texts = [value] if isinstance(value, str) else value
        for text in texts if isinstance(texts, Sequence) else ():
            if isinstance(text, str) and len(text) > self.prompt:
                raise LimitError(
                    f"{name} has {len(text)} characters, and this server reads {self.prompt}", name
                )

    def _check_steps(self, given: Mapping[str, Any]) -> None:
        for name in _STEPS:
            steps = given.get(name)
            if isinstance(steps, int) and steps > self.steps:
                raise LimitError(
                    f"{name} is {excerpt(steps)}, and this server makes {self.steps}", name
                )
        for name in _GRIDS:
            grid = given.get(name)
            if isinstance(grid, Sequence) and len(grid) > self.steps + 1:
                raise LimitError(
                    f"{name} has {len(grid)} values, and this server makes {self.steps} steps", name
                )

    def _check_size(self, given: Mapping[str, Any], facts: LatentFacts) -> None:
        width, height = facts.default_width, facts.default_height
        image = given.get("image")
        if isinstance(image, Image.Image):
            if given.get("inpaint_padding") is not None:  # the result is as large as the image
                self._check_pixels(
                    *image.size, "send a smaller image, or leave inpaint_padding out"
                )
            else:  # it gives the size where none is asked for
                width, height = image.size
        width, height = (
            value if isinstance(value, int) else default
            for value, default in ((given.get("width"), width), (given.get("height"), height))
        )
        self._check_pixels(width, height, "ask for a smaller width and height")
        scale = given.get("hires_scale")
        # Other numbers are refused by the pipeline.
        if isinstance(scale, int | float) and 1 <= scale <= _MOST_SCALE:
            self._check_pixels(
                larger_side(width, scale, facts.scale),
                larger_side(height, scale, facts.scale),
                "ask for a smaller hires_scale",
            )

    def _check_pixels(self, width: int, height: int, advice: str) -> None:
        if width * height > self.pixels:
            raise LimitError(
                f"an image of {excerpt(width)}x{excerpt(height)} has {excerpt(width * height)} "
                f"pixels, and this server makes {self.pixels}: {advice}",
                "size",
            )

    def _images(self, given: Mapping[str, Any]) -> int:
        prompts, each = given.get("prompt"), given.get("images_per_prompt", 1)
        count = (
            len(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else 1
        )
        images = max(1, count) * (each if isinstance(each, int) else 1)
        if images > self.images:
            raise LimitError(
                f"these are {excerpt(images)} images, and this server makes {self.images} of a "
                "request",
                "images_per_prompt" if count == 1 else "prompt",
            )
        return max(1, images)
