"""Running an adaptive plan: the one loop that depends on what it computes.

Every try is judged by a single number, read back once; the rest is enqueued as in the other loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError, NonFiniteError
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan, StepSize
from kdrt.sampling.samplers.dpm_solver import (
    Coefficients,
    ancestral_end,
    first_order,
    second_order,
    third_order,
)
from kdrt.sampling.step import Denoise, Noise, Step

_CLOSE = 1e-5
"""In ln σ. A run that is this near to its end has arrived."""

_MAX_TRIES = 10_000
"""For one image: far more than any tolerance that makes sense in float32 takes."""


@dataclass(frozen=True, slots=True)
class AdaptiveStep(Step):
    """An accepted step of one image; the other images of the batch are finished, or not begun.

    Attributes:
        image: the image of the step, counted from 0.
        evaluations: calls of the denoiser for this image so far.
        rejected: rejected tries for this image so far.
    """

    image: int
    evaluations: int
    rejected: int


def run_adaptive(
    plan: AdaptivePlan,
    latents: Tensor,
    denoiser_of: Callable[[int], Denoise],
    noise: Noise = None,
) -> Iterator[AdaptiveStep]:
    """Execute ``plan`` for one image after the other, and yield after every accepted step.

    Args:
        plan: from `kdrt.sampling.make_plan`.
        latents: ``[B, …]`` of any floating dtype, scaled by ``plan.sigmas[0]``. Not modified.
        denoiser_of: from the number of an image to a denoiser for a batch of that one image;
            called when its turn comes.
        noise: for steps with ``eta`` above 0, a function from the number of an image to its next
            standard normal draw, of the shape of its latents.

    Raises:
        ValueError: at once, if ``eta`` is above 0 and ``noise`` is not such a function.
        InvalidRequestError: while running, if the tolerances cannot be met.
        NonFiniteError: while running, if the denoiser's results are not finite.
    """
    draw = noise if callable(noise) else None
    if draw is None and plan.eta > 0 and plan.s_noise > 0:
        raise ValueError(f"{plan.sampler} with eta needs a function that draws an image's noise")
    return _steps(plan, latents, denoiser_of, draw)


@torch.no_grad()
def _steps(
    plan: AdaptivePlan,
    latents: Tensor,
    denoiser_of: Callable[[int], Denoise],
    draw: Callable[[int], Tensor] | None,
) -> Iterator[AdaptiveStep]:
    state = latents.clone()
    denoised = torch.zeros_like(state)
    index = 0
    for image in range(len(latents)):
        one = slice(image, image + 1)
        run = _Run(plan, state[one], denoiser_of(image))
        for sigma, sigma_next, noise in run.steps():
            state[one] = run.x
            if noise > 0 and draw is not None:
                state[one].add_(draw(image).to(state), alpha=noise)
                run.x = state[one].clone()
            denoised[one] = run.denoised
            yield AdaptiveStep(
                *(index, sigma, sigma_next, state, denoised),
                image=image,
                evaluations=run.evaluations,
                rejected=run.rejected,
            )
            index += 1


class _Run:
    """The run of one image: ``x`` is its state, ``denoised`` the newest D at an accepted state."""

    def __init__(self, plan: AdaptivePlan, x: Tensor, denoise: Denoise) -> None:
        self.x = x
        self.evaluations = 0
        self.rejected = 0
        self._plan = plan
        self._denoise = denoise
        self._results: list[Tensor] = []  # of the step being tried, from its start on

    @property
    def denoised(self) -> Tensor:
        return self._results[0]

    def steps(self) -> Iterator[tuple[float, float, float]]:
        """The σ, the next σ and the noise to add of every accepted step."""
        plan = self._plan
        size = StepSize(plan)
        place, end = -math.log(plan.highest), -math.log(plan.lowest)
        if end - place <= _CLOSE:
            self._evaluate(self.x, plan.highest)
            self.x = self._results[0]
            yield plan.highest, 0.0, 0.0
            return
        before = self.x
        tries = 0
        while place < end - _CLOSE:
            if tries == _MAX_TRIES:
                raise InvalidRequestError(
                    f"dpm_adaptive cannot meet rtol={plan.rtol:g} and atol={plan.atol:g} "
                    f"in {tries} tries: raise them, or use a sampler with fixed steps"
                )
            tries += 1
            following = min(end, place + size.h)
            s, t = math.exp(-place), math.exp(-following)
            down, up = ancestral_end(s, t, plan.lowest, plan.eta)
            low, high = self._try(s, down)
            # One value, once a try: the only synchronisation.
            error = float(self._error(low, high, before))
            if not math.isfinite(error):
                raise NonFiniteError("the denoiser's results are not finite: the UNet overflowed")
            if size.accepts(error):
                before, self.x = low, high
                place = following
                yield s, t, plan.s_noise * up
                self._results.clear()
            else:
                self.rejected += 1
                del self._results[1:]  # the start of the step stays where it was

    def _try(self, s: float, t: float) -> tuple[Tensor, Tensor]:
        """The states at t after the method of lower and that of higher order."""
        if self._plan.order == 3:
            stages, lower = third_order(s, t), second_order(s, t, 1 / 3)
        else:
            stages, lower = second_order(s, t), first_order(s, t)
        state = self.x
        for count, (sigma, coefficients) in enumerate(stages):
            if count == len(self._results):
                self._evaluate(state, sigma)
            state = self._combine(coefficients)
        return self._combine(lower[-1][1]), state

    def _evaluate(self, x: Tensor, sigma: float) -> None:
        # The denoiser may return the same tensor every time.
        self._results.append(self._denoise(x, sigma).clone())
        self.evaluations += 1

    def _combine(self, coefficients: Coefficients) -> Tensor:
        base, *weights = coefficients.tolist()
        state = torch.mul(self.x, base)
        for weight, result in zip(weights, self._results, strict=False):
            state.add_(result, alpha=weight)
        return state

    def _error(self, low: Tensor, high: Tensor, before: Tensor) -> Tensor:
        """The root mean square of the difference, in units of what is tolerated."""
        plan = self._plan
        tolerated = torch.maximum(low.abs(), before.abs()).mul_(plan.rtol).clamp_(min=plan.atol)
        excess: Tensor = torch.linalg.vector_norm((low - high) / tolerated)
        return excess / math.sqrt(low.numel())
