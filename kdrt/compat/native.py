"""The fast path: kdrt's plans and denoiser, fed the grid and the noise of the removed pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdrt.bundle import SchedulerFacts
from kdrt.common.lru import LruCache
from kdrt.compat.conditions import Conditions
from kdrt.compat.exact import StepCallback
from kdrt.compat.grid import TrainingTable
from kdrt.compat.noise import Seeds, brownian_noise
from kdrt.compat.plans import compat_plan
from kdrt.denoise.denoiser import Denoiser
from kdrt.sampling import AdaptivePlan, NoiseSchedule, Step, run, run_adaptive
from kdrt_engines import Engine

_KEPT = 4
"""Sizes whose buffers are kept."""


class NativeSampler:
    """Runs plans on a UNet, keeping the buffers of the sizes it saw last.

    Args:
        facts: the checkpoint's schedule.
        table: σ of every training timestep.
    """

    def __init__(self, facts: SchedulerFacts, table: TrainingTable) -> None:
        self._prediction_type = facts.prediction_type
        self._noise_schedule = NoiseSchedule(table.sigmas.double().numpy())
        self._denoisers: LruCache[tuple[Engine, int, int, int, int, bool], Denoiser] = LruCache(
            _KEPT
        )

    @torch.no_grad()
    def run(
        self,
        unet: Engine,
        sampler: str,
        conditions: Conditions,
        latents: Tensor,
        sigmas: Tensor,
        seeds: Callable[[], Seeds],
        callback: StepCallback,
    ) -> Tensor:
        """Sample; arguments as for :func:`kdrt.compat.exact.run_exact`. Latents are float32.

        Raises:
            InvalidRequestError: the grid does not descend, or the noise needs torchsde.
            ShapeError: the engine does not allow these sizes.
        """
        planned = compat_plan(sampler, sigmas.tolist())
        steps: Iterator[Step]
        if isinstance(planned, AdaptivePlan):

            def alone(image: int) -> Denoiser:
                return self._prepared(unet, conditions.one(image), latents[image : image + 1])

            steps = run_adaptive(planned, latents, alone)
        else:
            noise = None
            if planned.slots:
                noise = brownian_noise(planned, seeds(), latents.shape).to(latents.device)
            steps = run(planned, latents, self._prepared(unet, conditions, latents), noise)
        result = latents
        for step in steps:
            result = step.latents
            callback(step.index, step.sigma, result)
        return result

    def _prepared(self, unet: Engine, conditions: Conditions, latents: Tensor) -> Denoiser:
        denoiser = self._denoiser(unet, conditions, latents)
        parts = conditions.split()
        denoiser.prepare(
            parts[-1],
            parts[0] if conditions.doubled else None,
            guidance_scale=conditions.guidance_scale,
            time_ids=conditions.time_ids,
            freeu=conditions.freeu,
        )
        denoiser.prepare_image_prompt(conditions.image_tokens, conditions.image_scale)
        return denoiser

    def _denoiser(self, unet: Engine, conditions: Conditions, latents: Tensor) -> Denoiser:
        images, _, height, width = latents.shape
        tokens, doubled = conditions.hidden.shape[1], conditions.doubled
        return self._denoisers.get(
            (unet, images, height, width, tokens, doubled),
            lambda: Denoiser(
                unet,
                self._noise_schedule,
                self._prediction_type,
                images=images,
                height=height,
                width=width,
                tokens=tokens,
                doubled=doubled,
            ),
        )
