"""The seeds of a request's images: given, drawn from a generator, or drawn by chance."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Generator

from kdrt.common.validation import check_int, check_mapping, excerpt
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt.sampling import AdaptivePlan, AnyPlan, ForeignPlan, check_noise, find_noise
from kdrt.sampling.seed_numbers import SEEDS, counted

_RANDOM_SEED_LIMIT = 2**32
"""Drawn seeds are those that web UIs accept too."""


def seeds_of(
    request: Request, images: int, planned: AnyPlan
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The seeds of the images, and of the noise on the way where that has its own.

    Raises:
        InvalidRequestError: they are no seeds, too few, or not what the noise mode or the sampler
            takes.
    """
    if request["seed"] is not None and request["generator"] is not None:
        raise InvalidRequestError("seed and generator both say where noise comes from; give one")
    if request["generator"] is not None:
        seeds = _drawn_seeds(request["generator"], images)
    elif request["seed"] is None:
        seeds = counted(secrets.randbelow(_RANDOM_SEED_LIMIT - images), images)
    else:
        seeds = _seeds("seed", request["seed"], images)
    noise_seeds = None
    if request["noise_seed"] is not None:
        noise_seeds = _seeds("noise_seed", request["noise_seed"], images)
    options = check_mapping("noise_options", request["noise_options"])
    if isinstance(planned, ForeignPlan | AdaptivePlan):
        if request["noise"] != "per_image" or noise_seeds is not None:
            raise InvalidRequestError(
                f"{planned.sampler} draws its noise as it goes, by the seeds of the images; "
                "leave noise at per_image and noise_seed out"
            )
    else:
        check_noise(find_noise(request["noise"]), planned, seeds, noise_seeds, options)
    return seeds, noise_seeds


def _drawn_seeds(generator: object, images: int) -> tuple[int, ...]:
    if not isinstance(generator, Generator):
        raise InvalidRequestError(f"generator must be a torch.Generator, not {excerpt(generator)}")
    drawn = torch.randint(
        _RANDOM_SEED_LIMIT, (images,), generator=generator, device=generator.device
    )
    return tuple(drawn.tolist())


def _seeds(name: str, seed: object, images: int) -> tuple[int, ...]:
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != images:
            raise InvalidRequestError(
                f"{len(seed)} {name}s for {images} images: give one for each, or a single number"
            )
        return tuple(_seed(name, each) for each in seed)
    return counted(_seed(name, seed), images)


def _seed(name: str, value: object) -> int:
    return check_int(name, value, 0, SEEDS - 1)
