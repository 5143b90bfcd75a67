"""Many images as bounded batches: memory does not grow with their number, and each batch can be
saved when it is done."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdrt.cli.image_files import MAX_FILES
from kdrt.cli.notices import note
from kdrt.common.validation import MAX_IMAGES, check_int
from kdrt.errors import InvalidRequestError, OutOfMemoryError
from kdrt.sampling import find_noise
from kdrt.sampling.seed_numbers import SEEDS, counted

if TYPE_CHECKING:
    from kdrt import Pipeline, PreviewStep, Result

_BATCH_ON_CUDA = 4
_RANDOM_SEED_LIMIT = 2**32
"""Drawn seeds are those that web UIs accept too."""

Watch = Callable[["PreviewStep", int], object]
"""Called after every step, with the number of steps in all."""


@dataclass(frozen=True)
class Series:
    """All images of a command; each has a prompt and a seed of its own.

    Attributes:
        fields: of the request, the same for all images.
        prompts: one an image.
        seeds: likewise.
        noise_seeds: likewise; None where the noise goes by the seeds.
        latents: ``[images, C, h, w]`` to begin with, or None.
    """

    fields: Mapping[str, Any]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    noise_seeds: tuple[int, ...] | None
    latents: Tensor | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Series:
        """The images of a request.

        Args:
            fields: of a request whose ``prompt`` is a list, and ``seed`` and ``noise_seed`` None
                or a number.

        Raises:
            InvalidRequestError: so many images of a prompt are not possible, or there are not as
                many latents.
        """
        shared = dict(fields)
        prompts, latents = shared.pop("prompt"), shared.pop("latents", None)
        count = check_int("--count", shared.pop("images_per_prompt", 1), 1, MAX_IMAGES)
        images = len(prompts) * count
        if images > MAX_FILES:
            raise InvalidRequestError(
                f"{images} images are more than {MAX_FILES}; make them in several runs"
            )
        seed, noise_seed = shared.pop("seed", None), shared.pop("noise_seed", None)
        if seed is None:
            seed = secrets.randbelow(_RANDOM_SEED_LIMIT - images)
        if latents is not None and len(latents) != images:
            raise InvalidRequestError(
                f"there are {len(latents)} latents for {images} images; give as many prompts, or "
                "--count, as there were"
            )
        return cls(
            shared,
            tuple(prompt for prompt in prompts for _ in range(count)),
            _counted("seed", seed, images),
            None if noise_seed is None else _counted("noise_seed", noise_seed, images),
            latents,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def request(self, start: int, stop: int) -> dict[str, Any]:
        """The request for the images from ``start`` to before ``stop``."""
        part = slice(start, stop)
        return {
            **self.fields,
            "prompt": list(self.prompts[part]),
            "seed": list(self.seeds[part]),
            "noise_seed": None if self.noise_seeds is None else list(self.noise_seeds[part]),
            "latents": None if self.latents is None else self.latents[part],
        }


def chosen_batch_size(series: Series, pipe: Pipeline, asked: int | None) -> int:
    """How many images to make at once.

    On a CPU one, so that each is saved at the earliest; on a GPU four, within what its engine was
    built for.

    Args:
        series: the images.
        pipe: what makes them.
        asked: what the user said; None is up to us.

    Raises:
        InvalidRequestError: ``asked`` is no such number, or the noise is that of one whole batch.
    """
    if asked is not None:
        check_int("--batch-size", asked, 1, MAX_IMAGES)
    if find_noise(series.fields.get("noise", "per_image")).one_seed:
        if asked is not None and asked < len(series):
            raise InvalidRequestError(
                f"the noise {series.fields['noise']} is drawn for all images together; leave "
                "--batch-size out"
            )
        return len(series)
    if asked is not None:
        return asked
    unet = pipe.engines["unet"]
    if unet.device.type == "cpu":
        return 1
    # With guidance an image takes two rows.
    least, most = unet.limits().get("B", (1, 2 * _BATCH_ON_CUDA))
    return max(1, min(max(_BATCH_ON_CUDA, least // 2), most // 2))


def generate_batches(
    pipe: Pipeline, series: Series, size: int, watch: Watch | None = None
) -> Iterator[Result[Any]]:
    """Make a series, batch by batch. Where memory runs out, smaller batches are tried.

    Args:
        pipe: what makes them.
        series: the images.
        size: of a batch.
        watch: see :data:`Watch`.

    Raises:
        KdrtError: as :class:`kdrt.Pipeline` does.
    """
    done = 0
    while done < len(series):
        request = series.request(done, min(done + size, len(series)))
        try:
            result = _generate(pipe, request, watch)
        except OutOfMemoryError:
            size = min(size, len(request["seed"])) // 2
            if not size:
                raise
            note("note", f"memory ran out; going on with batches of {size}")
            continue
        done += len(result.seeds)
        yield result


def _generate(pipe: Pipeline, request: Mapping[str, Any], watch: Watch | None) -> Result[Any]:
    if watch is None:
        return pipe(**request)
    generation = pipe.stream(**request)
    for step in generation:
        watch(step, len(generation))
    return generation.result()


def _counted(name: str, first: int, images: int) -> tuple[int, ...]:
    return counted(check_int(name, first, 0, SEEDS - 1), images)
