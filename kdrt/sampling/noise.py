"""The random numbers of a run, all drawn on the host before its first step.

Drawing early costs a few megabytes and buys a loop without generators (which a captured graph
could not hold) and images that do not depend on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError
from kdrt.sampling.plan import NoiseSlot

_LANES = 16
"""torch's CPU generator fills that many normal numbers at a time. Draws of a multiple of it, made
one after the other, are the numbers of a single draw."""


class NoiseSource(Protocol):
    """A source of the noise of a plan."""

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        """Draw every slot of a plan: float32 ``[len(slots), B, C, H, W]``, with the joint
        distribution that `NoiseSlot` describes."""
        ...


class SeededNoise:
    """Noise from one generator per image: an image depends on its seed, not on its batch.

    The generators run on the CPU, whatever the device, so that a seed gives the same image
    everywhere. Each image first draws its initial latents, at construction, then its slots one
    after the other.

    Args:
        seeds: one per image: a seed, or a CPU generator to continue with.
        shape: ``(C, H, W)`` of the latents of one image.
        device: where the results are returned; the host draws them.

    Raises:
        InvalidRequestError: there is no seed, or a generator is not on the CPU.
    """

    def __init__(
        self,
        seeds: Sequence[int | torch.Generator],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if not seeds:
            raise InvalidRequestError("noise needs at least one seed, one per image")
        self._generators = [_cpu_generator(seed) for seed in seeds]
        self._shape = tuple(shape)
        self._device = torch.device(device)
        self._latents = torch.cat([self._successive(each, 1) for each in self._generators])

    def latents(self) -> Tensor:
        """The initial latents: standard normal float32 ``[B, C, H, W]``, not yet scaled by σ."""
        return self._latents.to(self._device, copy=True)

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        """Draw the noise of ``slots``: float32 ``[len(slots), B, C, H, W]``.

        Overlapping slots are correlated as `correlate` describes. Another call continues with the
        same generators.
        """
        noise = torch.empty((len(slots), *self._latents.shape), dtype=torch.float32)
        if not slots:
            return noise.to(self._device)
        for image, generator in enumerate(self._generators):
            noise[:, image] = self._successive(generator, len(slots))
        correlate(noise, slots)
        return noise.to(self._device)

    def another(self, image: int) -> Tensor:
        """One more draw from the generator of an image, float32 ``[C, H, W]``, for runs whose steps
        are not known beforehand."""
        draw = torch.empty(self._shape, dtype=torch.float32).normal_(
            generator=self._generators[image]
        )
        return draw.to(self._device)

    def _successive(self, generator: torch.Generator, count: int) -> Tensor:
        """``count`` draws, one after the other: ``[count, C, H, W]``."""
        draws = torch.empty((count, *self._shape), dtype=torch.float32)
        if math.prod(self._shape) % _LANES == 0:
            return draws.normal_(generator=generator)
        for draw in draws.unbind():
            draw.normal_(generator=generator)
        return draws


class BrownianNoise:
    """Increments of torchsde's Brownian tree, for the images that k-diffusion makes from a seed.

    The noise is bit-equal to k-diffusion's ``BrownianTreeNoiseSampler`` on float32 latents and
    float32 σ. (k-diffusion's dpmpp_sde asks the tree for σ that went through a float32 logarithm
    and back, an ulp away from ours; its latents agree to 1e-3 of the highest σ.) A query costs some
    fifty calls of ``randn`` and does not depend on the order of queries, so all are made before the
    loop. Use `SeededNoise` unless seeds must match: its distribution is the same.

    Args:
        x_shape: ``(B, C, H, W)`` of the latents.
        seeds: an int is one tree for the whole batch (an image then depends on its place in the
            batch); a sequence is one tree per image.
        sigma_min: lowest positive σ of the grid.
        sigma_max: highest σ of the grid.

    Raises:
        InvalidRequestError: torchsde is not installed, or the seeds do not match the batch.
    """

    def __init__(
        self, x_shape: Sequence[int], seeds: int | Sequence[int], sigma_min: float, sigma_max: float
    ) -> None:
        package = torchsde()
        self._shape = tuple(x_shape)
        self._low, self._high = _float32(sigma_min), _float32(sigma_max)
        if isinstance(seeds, int):
            entropies, zeros = [seeds], torch.zeros(self._shape)
        else:
            entropies, zeros = list(seeds), torch.zeros(self._shape[1:])
            if len(entropies) != self._shape[0]:
                raise InvalidRequestError(
                    f"{len(entropies)} noise seeds for a batch of {self._shape[0]}: give one "
                    "seed for the whole batch, or one per image"
                )
        # torchsde rounds its ends to six decimals, then warns of queries an ulp beyond them.
        self._start, self._end = round(float(self._low), 6), round(float(self._high), 6)
        self._trees = [
            package.BrownianTree(self._low, zeros, self._high, entropy=entropy)
            for entropy in entropies
        ]

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        """Draw the noise of ``slots`` on the host: float32 ``[len(slots), B, C, H, W]``.

        Raises:
            InvalidRequestError: a slot is outside the range of the tree, or is one of churn, whose
                noise lies on no Brownian path.
        """
        noise = torch.empty((len(slots), *self._shape), dtype=torch.float32)
        for index, slot in enumerate(slots):
            low, high = _float32(slot.sigma_next), _float32(slot.sigma)
            if not self._low <= low < high <= self._high:
                raise InvalidRequestError(
                    f"Brownian noise covers sigma from {self._high:g} to {self._low:g}, not from "
                    f"{slot.sigma:g} to {slot.sigma_next:g}; with s_churn, use seeded noise"
                )
            start = max(float(low), self._start)
            end = min(float(high), self._end)
            increments = [tree(start, end) for tree in self._trees]
            # σ runs downwards, against the tree's time: hence the sign.
            noise[index] = -torch.stack(increments).reshape(self._shape) / (high - low).sqrt()
        return noise


def correlate(noise: Tensor, slots: Sequence[NoiseSlot]) -> None:
    """Give independent draws ``noise [len(slots), ...]`` the joint law of ``slots``, in place.

    The overlap that samplers produce is a slot followed by a longer one with the same start,
    (σ, m) then (σ, τ). The increment over the second is the one over the first plus an
    independent one over (m, τ), hence ξ₂ = √ρ·ξ₁ + √(1-ρ)·ξ with ρ = (σ - m)/(σ - τ): the law of
    a Brownian tree without the tree. Every other slot stays as it was drawn.
    """
    for chain in _overlapping(slots):
        index = torch.tensor([index for index, _ in chain])
        shape = (len(chain), *(1,) * (noise.dim() - 1))
        shared = torch.tensor([math.sqrt(rho) for _, rho in chain], dtype=torch.float32).view(shape)
        own = torch.tensor([math.sqrt(1 - rho) for _, rho in chain], dtype=torch.float32).view(
            shape
        )
        # Products and sum apart: rounded as one, they would depend on an element's place in the
        # batch, where vector and remainder lanes differ.
        noise[index] = noise[index] * own + noise[index - 1] * shared


def _overlapping(slots: Sequence[NoiseSlot]) -> list[list[tuple[int, float]]]:
    """The slots that overlap the one before them, as (index, ρ): first those whose predecessor
    overlaps none, then those whose predecessor is among the first, and so on."""
    chains: list[list[tuple[int, float]]] = []
    previous: NoiseSlot | None = None
    depth = 0
    for index, slot in enumerate(slots):
        rho = overlap(previous, slot)
        depth = depth + 1 if rho > 0 else 0
        if depth > len(chains):
            chains.append([])
        if depth > 0:
            chains[depth - 1].append((index, rho))
        previous = slot
    return chains


def _cpu_generator(seed: int | torch.Generator) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        if seed.device.type != "cpu":
            raise InvalidRequestError(
                f"generators must be on the CPU, where noise is drawn, not on {seed.device}"
            )
        return seed
    return torch.Generator().manual_seed(seed)


def overlap(previous: NoiseSlot | None, slot: NoiseSlot) -> float:
    """ρ of a slot and the one before it: of two intervals with one start, shorter over longer."""
    if previous is None or previous.sigma != slot.sigma or slot.sigma == slot.sigma_next:
        return 0.0
    covered = previous.sigma - previous.sigma_next
    whole = slot.sigma - slot.sigma_next
    return min(covered, whole) / max(covered, whole)


def _float32(sigma: float) -> Tensor:
    """k-diffusion keeps σ in float32 tensors, and the tree's bisection sees every bit of them."""
    return torch.tensor(sigma, dtype=torch.float32)


def torchsde() -> ModuleType:
    """The package of that name.

    Raises:
        InvalidRequestError: it is not installed.
    """
    try:
        import torchsde as package
    except ImportError as error:
        raise InvalidRequestError(
            "k-diffusion's Brownian noise needs torchsde: pip install torchsde"
        ) from error
    return package  # type: ignore[no-any-return]
