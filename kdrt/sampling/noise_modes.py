"""Whose noise a seed stands for: our own, k-diffusion's, AUTOMATIC1111's or ComfyUI's.

A mode decides from which generators the initial latents and the noise on the way are drawn, and
in which order. All of them draw on the CPU, before the first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from kdrt.common.validation import check_choice, excerpt, plain_number
from kdrt.errors import InvalidRequestError
from kdrt.sampling.noise import (
    BrownianNoise,
    NoiseSource,
    SeededNoise,
    correlate,
    torchsde,
)
from kdrt.sampling.philox import PhiloxGenerator
from kdrt.sampling.plan import NoiseSlot, Plan
from kdrt.sampling.seed_numbers import SEEDS, counted

_TREE_SAMPLERS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
"""Those to which k-diffusion, and the programs built on it, give a Brownian tree by default."""


class RunNoise(NoiseSource, Protocol):
    """All noise of a run: its initial latents, and the noise of its slots."""

    def latents(self) -> Tensor:
        """The initial latents: standard normal float32 ``[B, C, H, W]``, not yet scaled by σ."""
        ...


@dataclass(frozen=True, slots=True)
class NoiseInfo:
    """Facts about a noise mode.

    Attributes:
        name: canonical name.
        meaning: one line on what it draws.
        make: from seeds, a shape ``(C, H, W)``, a plan and noise seeds to the noise of a run.
        has_noise_seed: whether the noise of the steps can have its own seed.
        tree: tells which plans get a Brownian tree.
        has_churn: whether it also has noise for churn.
        one_seed: whether the batch has one seed, from which the seeds of its images count up.
    """

    name: str
    meaning: str
    make: Callable[..., RunNoise]
    has_noise_seed: bool
    tree: Callable[[Plan], bool]
    has_churn: bool = True
    one_seed: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the mode, with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def per_image(
    seeds: Sequence[int], shape: Sequence[int], plan: Plan, noise_seeds: Sequence[int] | None
) -> RunNoise:
    """`SeededNoise`. A noise seed brings the noise on the way of the image with that seed."""
    source = SeededNoise(seeds, shape)
    if noise_seeds is None:
        return source
    return _Joined(source.latents(), lambda: SeededNoise(noise_seeds, shape))


def brownian(
    seeds: Sequence[int], shape: Sequence[int], plan: Plan, noise_seeds: Sequence[int] | None
) -> RunNoise:
    """`BrownianNoise`, one tree an image: k-diffusion's ``BrownianTreeNoiseSampler``."""
    latents = SeededNoise(seeds, shape).latents()
    tree_seeds = seeds if noise_seeds is None else noise_seeds
    return _Joined(latents, lambda: _tree(tree_seeds, latents, plan))


def a1111(
    seeds: Sequence[int],
    shape: Sequence[int],
    plan: Plan,
    noise_seeds: None,
    *,
    eta_noise_seed_delta: int = 0,
    source: str = "cpu",
) -> RunNoise:
    """One generator an image, which draws its initial latents and then once a step.

    Args:
        seeds: one per image.
        shape: ``(C, H, W)``.
        plan: SDE samplers get a Brownian tree from the seeds instead.
        noise_seeds: none: the delta is this mode's form of it.
        eta_noise_seed_delta: ENSD: the generators of the steps start from seed + delta, modulo
            2⁶⁴.
        source: ``cpu``, or ``nv`` for the numbers of an NVIDIA GPU (`PhiloxGenerator`).
    """
    make = PhiloxGenerator if source == "nv" else _CpuGenerator
    generators: list[_Generator] = [make(seed) for seed in seeds]
    latents = torch.stack([generator.randn(shape) for generator in generators])
    if _has_tree_by_default(plan):
        return _Joined(latents, lambda: _tree(seeds, latents, plan))
    if eta_noise_seed_delta:
        generators = [make((seed + eta_noise_seed_delta) % SEEDS) for seed in seeds]
    return _Joined(latents, lambda: _StepByStep(generators, shape, plan))


def comfyui(
    seeds: Sequence[int], shape: Sequence[int], plan: Plan, noise_seeds: Sequence[int] | None
) -> RunNoise:
    """One CPU generator for the initial latents of the whole batch, and one, a seed further (0
    after the last), for the noise on the way; SDE samplers get one Brownian tree over the batch.

    (On a GPU, ComfyUI draws the noise on the way there, and churn comes from torch's global
    generator: such images cannot be had again here.)
    """
    batch = (len(seeds), *shape)
    latents = torch.randn(batch, generator=torch.Generator().manual_seed(seeds[0]))
    noise_seed = seeds[0] if noise_seeds is None else noise_seeds[0]
    if _has_tree_by_default(plan):
        return _Joined(latents, lambda: _tree(noise_seed, latents, plan))
    return _Joined(
        latents, lambda: _StepByStep([_CpuGenerator((noise_seed + 1) % SEEDS)], batch, plan)
    )


def _has_tree_by_default(plan: Plan) -> bool:
    return plan.sampler.startswith(_TREE_SAMPLERS)


_ALL = (
    NoiseInfo(
        *("per_image", "one generator an image: no image depends on its batch", per_image),
        *(True, lambda plan: False),
    ),
    NoiseInfo(
        *("brownian", "k-diffusion's Brownian tree, one an image", brownian),
        *(True, lambda plan: True),
        has_churn=False,
    ),
    NoiseInfo(
        *("a1111", "the AUTOMATIC1111 web UI's, with ENSD and its CPU or NV source", a1111),
        *(False, _has_tree_by_default),
    ),
    NoiseInfo(
        *("comfyui", "ComfyUI's on the CPU: one generator for the whole batch", comfyui),
        *(True, _has_tree_by_default),
        has_churn=False,
        one_seed=True,
    ),
)
NOISES: Mapping[str, NoiseInfo] = MappingProxyType({info.name: info for info in _ALL})


def find_noise(name: str) -> NoiseInfo:
    """The noise mode of that name.

    Raises:
        InvalidRequestError: there is no such mode.
    """
    check_choice("noise", name, NOISES)
    return NOISES[name]


def check_noise(
    info: NoiseInfo,
    plan: Plan,
    seeds: Sequence[int],
    noise_seeds: Sequence[int] | None,
    options: Mapping[str, Any],
) -> None:
    """Refuse what a noise mode cannot draw, before anything is drawn.

    Args:
        info: the mode.
        plan: the plan of the run.
        seeds: one per image.
        noise_seeds: likewise, for the noise of the steps; None if there are none.
        options: the options of the mode.

    Raises:
        InvalidRequestError: an option is unknown or out of range; a noise seed is given to a mode
            that has none, or several seeds to a mode that has one; the plan has churn and the mode
            has no noise for it; or the plan needs a Brownian tree, and the numbers are those of a
            GPU or torchsde is not installed.
    """
    for name, value in options.items():
        if name not in info.options:
            known = f"accepts {', '.join(info.options)}" if info.options else "has no options"
            raise InvalidRequestError(f"the noise {info.name} has no option {name!r}: it {known}")
        allowed, is_valid = _RULES[name]
        if not is_valid(plain_number(value)):
            raise InvalidRequestError(f"{name} must be {allowed}, not {excerpt(value)}")
    if noise_seeds is not None and not info.has_noise_seed:
        raise InvalidRequestError(
            f"the noise {info.name} has no noise_seed; give its option eta_noise_seed_delta"
        )
    if info.one_seed and tuple(seeds) != counted(seeds[0], len(seeds)):
        raise InvalidRequestError(
            f"the noise {info.name} has one seed for the whole batch: give a single number"
        )
    if not info.has_churn and any(slot.sigma == slot.sigma_next for slot in plan.slots):
        raise InvalidRequestError(
            f"{plan.sampler} adds churn, for which the noise {info.name} has none; leave s_churn "
            "at 0, or take per_image"
        )
    if plan.slots and info.tree(plan):
        if options.get("source") == "nv":
            raise InvalidRequestError(
                f"{plan.sampler} takes its noise from a Brownian tree, which is not emulated with "
                "the source nv; use cpu"
            )
        torchsde()


class _Generator(Protocol):
    def randn(self, shape: Sequence[int]) -> Tensor: ...


class _CpuGenerator:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator)


class _Joined:
    """Initial latents, and the noise on the way from another source, made when it is needed."""

    def __init__(self, latents: Tensor, steps: Callable[[], NoiseSource]) -> None:
        self._latents, self._steps = latents, steps

    def latents(self) -> Tensor:
        return self._latents.clone()

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        if not slots:
            return self._latents.new_empty((0, *self._latents.shape))
        return self._steps().draw(slots)


class _StepByStep:
    """Draws in the order of k-diffusion's samplers, which draw for churn at every step, also where
    there is none."""

    def __init__(self, generators: Sequence[_Generator], shape: Sequence[int], plan: Plan) -> None:
        self._generators, self._shape, self._sigmas = generators, tuple(shape), plan.sigmas
        self._draws = 0

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        noise = torch.stack([self._fresh(slot) for slot in slots])
        correlate(noise, slots)
        return noise

    def _fresh(self, slot: NoiseSlot) -> Tensor:
        if slot.sigma == slot.sigma_next and slot.sigma in self._sigmas:
            while self._draws < self._sigmas.index(slot.sigma):
                self._next()
        return self._next()

    def _next(self) -> Tensor:
        self._draws += 1
        drawn = [generator.randn(self._shape) for generator in self._generators]
        return drawn[0] if len(self._shape) == 4 else torch.stack(drawn)


def _tree(seeds: int | Sequence[int], latents: Tensor, plan: Plan) -> NoiseSource:
    positive = [sigma for sigma in plan.sigmas if sigma > 0]
    return BrownianNoise(latents.shape, seeds, positive[-1], positive[0])


_Rule = tuple[str, Callable[[Any], bool]]
_RULES: Mapping[str, _Rule] = {
    "eta_noise_seed_delta": (
        "a whole number from 0 to 2**64 - 1",
        lambda v: type(v) is int and 0 <= v < SEEDS,
    ),
    "source": ("cpu or nv", lambda v: v in ("cpu", "nv")),
}
