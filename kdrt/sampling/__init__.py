"""Sampling: σ schedules, samplers as plans, the loop that runs them, and its noise.

    sigmas = sigmas_for("karras", 30, noise_schedule)
    planned = plan("dpmpp_2m_sde", sigmas, eta=0.5)
    source = SeededNoise([1234], (4, 64, 64))
    x = source.latents() * sigmas[0]
    for step in run(planned, x, denoise, source.draw(planned.slots)):
        ...

Depends on torch, NumPy and `kdrt.errors`; knows nothing of engines or prompts, only a function
``denoise(x, sigma)``. The package's name ``plan`` is the function; the module of the dataclasses
is reached by ``from kdrt.sampling.plan import …``.
"""

from __future__ import annotations

from kdrt.sampling.adaptive import AdaptiveStep, run_adaptive
from kdrt.sampling.executor import Denoise, Step, run, sample
from kdrt.sampling.foreign import ForeignPlan, foreign_plan, is_foreign, run_foreign
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

__all__ = [
    "NOISES",
    "SAMPLERS",
    "SCHEDULES",
    "AdaptivePlan",
    "AdaptiveStep",
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
