"""The random numbers of the removed pipelines: which generator gives what, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kdrt.common.validation import check_int
from kdrt.errors import InvalidRequestError
from kdrt.sampling import AdaptivePlan, BrownianNoise, NoiseSlot, Plan

Generators = torch.Generator | Sequence[torch.Generator] | None
Seeds = int | list[int]

MAX_SEED = 2**64 - 1
_LIMIT = 2**63 - 1


def initial_noise(
    shape: Sequence[int], generator: Generators, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normal ``[B, C, h, w]``, as diffusers draws it: on the generator's device, then
    moved; from a list of generators, one image from each; without, from torch's global one.

    Raises:
        InvalidRequestError: as many generators as images are needed.
    """
    generators = _generators(generator, shape[0])
    if isinstance(generators, list):
        single = (1, *shape[1:])
        return torch.cat([_randn(single, each, dtype, device) for each in generators])
    return _randn(shape, generators, dtype, device)


def noise_seeds(seed: int | Sequence[int] | None, generator: Generators, images: int) -> Seeds:
    """The seeds of the Brownian trees: one for the whole batch, or one an image.

    What was given is used: a number is one tree over the whole batch, a list one tree an image.
    Without, every image's seed is drawn from the generator that drew its latents; and without
    generators too, one for the batch from torch's global generator, as k-diffusion does.

    Raises:
        InvalidRequestError: the seeds are no whole numbers, or not as many as there are images.
    """
    if seed is not None:
        return _given(seed, images)
    generators = _generators(generator, images)
    if generators is None:
        return int(torch.randint(0, _LIMIT, []).item())
    if isinstance(generators, list):
        return [_draw(each, 1)[0] for each in generators]
    return _draw(generators, images)


def brownian_noise(plan: Plan | AdaptivePlan, seeds: Seeds, shape: Sequence[int]) -> Tensor:
    """The noise k-diffusion's Brownian trees give a plan: float32 ``[slots, *shape]``.

    Raises:
        InvalidRequestError: torchsde is not installed, or a slot lies outside of the grid.
    """
    positive = [sigma for sigma in plan.sigmas if sigma > 0]
    low, high = min(positive), max(positive)
    slots = _through_logarithm(plan, low, high) if plan.sampler == "dpmpp_sde" else plan.slots
    return BrownianNoise(shape, seeds, low, high).draw(slots)


def _through_logarithm(plan: Plan | AdaptivePlan, low: float, high: float) -> list[NoiseSlot]:
    """The intervals k-diffusion's dpmpp_sde asks its tree for: of σ that went through a float32
    logarithm and back. The tree bisects, so that an ulp leads it elsewhere."""
    grid = torch.tensor(plan.sigmas, dtype=torch.float32)
    slots = []
    for sigma, sigma_next in pairwise(grid):
        if sigma_next == 0:
            continue
        t, t_next = sigma.log().neg(), sigma_next.log().neg()
        middle = t + (t_next - t) * (1 / 2)
        start, *ends = (min(max(float(x.neg().exp()), low), high) for x in (t, middle, t_next))
        slots += [NoiseSlot(start, end) for end in ends]
    return slots


def _generators(
    generator: Generators, images: int
) -> torch.Generator | list[torch.Generator] | None:
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, Sequence) or not all(
        isinstance(each, torch.Generator) for each in generator
    ):
        raise InvalidRequestError("generator must be a torch.Generator or a list of them")
    if len(generator) != images:
        raise InvalidRequestError(
            f"{len(generator)} generators for {images} images: give one for each, or a single one"
        )
    return list(generator)


def _randn(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    place = device if generator is None else generator.device
    if place.type != device.type and place.type != "cpu":
        raise InvalidRequestError(
            f"a generator on {place} cannot make noise for a pipeline on {device}"
        )
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=place).to(device)


def _draw(generator: torch.Generator, count: int) -> list[int]:
    drawn = torch.randint(0, _LIMIT, (count,), generator=generator, device=generator.device)
    return [int(value) for value in drawn.tolist()]


def _given(seed: int | Sequence[int], images: int) -> Seeds:
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return check_int("noise_sampler_seed", seed, 0, MAX_SEED)
    if len(seed) != images:
        raise InvalidRequestError(
            f"{len(seed)} noise_sampler_seeds for {images} images: give one for each, or a single "
            "number for the whole batch"
        )
    return [check_int("noise_sampler_seed", each, 0, MAX_SEED) for each in seed]
