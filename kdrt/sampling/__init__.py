"""Sampling: σ schedules, samplers as plans, the loop that runs them, and its noise.

    sigmas = sigmas_for("karras", 30, noise_schedule)
    plan = make_plan("dpmpp_2m_sde", sigmas, eta=0.5)
    source = SeededNoise([1234], (4, 64, 64))
    x = source.latents() * sigmas[0]
    for step in run(plan, x, denoise, source.draw(plan.slots)):
        ...

Depends on torch, NumPy, `kdrt.common` and `kdrt.errors`. It knows nothing of engines or prompts,
only a function ``denoise(x, sigma)``.

Its files:

    schedules     grids of σ
    samplers      planners: from a grid to a plan
    plan          the plan: every coefficient of a run
    step          what all loops share: denoiser, noise, completed step
    dispatch      run any plan, by one of the next two
    executor      the loop over fixed steps
    adaptive      the loop that chooses its steps
    program       a plan compiled to elementwise operations
    table         a plan as a table of numbers, for stages that read them on the device
    slots         the states of several images, each at a stage of its own plan
    foreign       samplers that are not ours
    k_diffusion   finds those of k-diffusion
    noise         the random numbers of a run
    noise_modes   those of other programs
    philox        those of an NVIDIA GPU
    seed_numbers  the seeds there are, and those of a batch
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdrt.sampling.adaptive import AdaptiveStep, run_adaptive
    from kdrt.sampling.dispatch import run, sample
    from kdrt.sampling.foreign import AnyPlan, ForeignPlan, foreign_plan, run_foreign
    from kdrt.sampling.k_diffusion import is_foreign
    from kdrt.sampling.noise import BrownianNoise, NoiseSource, SeededNoise
    from kdrt.sampling.noise_modes import NOISES, NoiseInfo, RunNoise, check_noise, find_noise
    from kdrt.sampling.plan import NoiseSlot, Plan, Stage
    from kdrt.sampling.samplers import SAMPLERS, SamplerInfo, find_sampler, make_plan, split_label
    from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan
    from kdrt.sampling.schedules import (
        SCHEDULES,
        NoiseSchedule,
        ScheduleInfo,
        find_schedule,
        partial_grid,
        sigmas_for,
    )
    from kdrt.sampling.step import Denoise, Step

__all__ = [
    "NOISES",
    "SAMPLERS",
    "SCHEDULES",
    "AdaptivePlan",
    "AdaptiveStep",
    "AnyPlan",
    "BrownianNoise",
    "Denoise",
    "ForeignPlan",
    "NoiseInfo",
    "NoiseSchedule",
    "NoiseSlot",
    "NoiseSource",
    "Plan",
    "RunNoise",
    "SamplerInfo",
    "ScheduleInfo",
    "SeededNoise",
    "Stage",
    "Step",
    "check_noise",
    "find_noise",
    "find_sampler",
    "find_schedule",
    "foreign_plan",
    "is_foreign",
    "make_plan",
    "partial_grid",
    "run",
    "run_adaptive",
    "run_foreign",
    "sample",
    "sigmas_for",
    "split_label",
]

_HOME = {
    "AdaptivePlan": "kdrt.sampling.samplers.dpm_adaptive",
    "AdaptiveStep": "kdrt.sampling.adaptive",
    "AnyPlan": "kdrt.sampling.foreign",
    "BrownianNoise": "kdrt.sampling.noise",
    "Denoise": "kdrt.sampling.step",
    "ForeignPlan": "kdrt.sampling.foreign",
    "NOISES": "kdrt.sampling.noise_modes",
    "NoiseInfo": "kdrt.sampling.noise_modes",
    "NoiseSchedule": "kdrt.sampling.schedules",
    "NoiseSlot": "kdrt.sampling.plan",
    "NoiseSource": "kdrt.sampling.noise",
    "Plan": "kdrt.sampling.plan",
    "RunNoise": "kdrt.sampling.noise_modes",
    "SAMPLERS": "kdrt.sampling.samplers",
    "SCHEDULES": "kdrt.sampling.schedules",
    "SamplerInfo": "kdrt.sampling.samplers",
    "ScheduleInfo": "kdrt.sampling.schedules",
    "SeededNoise": "kdrt.sampling.noise",
    "Stage": "kdrt.sampling.plan",
    "Step": "kdrt.sampling.step",
    "check_noise": "kdrt.sampling.noise_modes",
    "find_noise": "kdrt.sampling.noise_modes",
    "find_sampler": "kdrt.sampling.samplers",
    "find_schedule": "kdrt.sampling.schedules",
    "foreign_plan": "kdrt.sampling.foreign",
    "is_foreign": "kdrt.sampling.k_diffusion",
    "make_plan": "kdrt.sampling.samplers",
    "partial_grid": "kdrt.sampling.schedules",
    "run": "kdrt.sampling.dispatch",
    "run_adaptive": "kdrt.sampling.adaptive",
    "run_foreign": "kdrt.sampling.foreign",
    "sample": "kdrt.sampling.dispatch",
    "sigmas_for": "kdrt.sampling.schedules",
    "split_label": "kdrt.sampling.samplers",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'kdrt.sampling' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
