"""The fast path: kdrt's plans and denoiser, fed the grid and the noise of the removed pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdrt.compat.conditions import Conditions
from kdrt.compat.exact import StepCallback
from kdrt.compat.noise import Seeds, brownian_noise
from kdrt.compat.plans import compat_plan
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.inputs import SamplingRun
from kdrt.sampling import AdaptivePlan, NoiseSchedule, NoiseSlot, Plan


@torch.no_grad()
def run_native(
    denoising: Denoising,
    sampler: str,
    conditions: Conditions,
    latents: Tensor,
    sigmas: Tensor,
    seeds: Callable[[], Seeds],
    callback: StepCallback,
    *,
    noise_schedule: NoiseSchedule,
    watched: bool = True,
) -> Tensor:
    """Sample; arguments as for :func:`kdrt.compat.exact.run_exact`, but for these.

    Args:
        denoising: the pipeline's.
        sampler: see there.
        conditions: what the UNet is told.
        latents: float32.
        sigmas: see there.
        seeds: see there.
        callback: see there; not ``watched``, it may be told of the last step only.
        noise_schedule: gives the timestep of a σ, to samplers too.
        watched: whether every step is wanted.

    Raises:
        InvalidRequestError: the grid does not descend, or the noise needs torchsde.
        ShapeError: the engine does not allow these sizes.
    """
    plan = compat_plan(sampler, sigmas.tolist(), noise_schedule)
    run = SamplingRun(
        plan=plan,
        latents=latents,
        noise=_TreeNoise(plan, seeds, latents.shape),
        inputs=conditions.inputs(noise_schedule),
    )
    result = latents
    for step in denoising.sample(run, watched=watched):
        result = step.latents
        callback(step.index, step.sigma, result)
    return result


class _TreeNoise:
    """The noise of a plan from k-diffusion's Brownian trees; without slots no seed is drawn."""

    def __init__(
        self, plan: Plan | AdaptivePlan, seeds: Callable[[], Seeds], shape: Sequence[int]
    ) -> None:
        self._plan, self._seeds, self._shape = plan, seeds, shape

    def draw(self, slots: Sequence[NoiseSlot]) -> Tensor:
        if not slots:
            return torch.empty(0, *self._shape)
        return brownian_noise(self._plan, self._seeds(), self._shape)
