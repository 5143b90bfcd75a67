"""Running any plan of ours: fixed steps, or steps that the run chooses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from kdrt.sampling.adaptive import run_adaptive
from kdrt.sampling.executor import run_fixed
from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan
from kdrt.sampling.step import Denoise, Noise, Step


def run(
    plan: Plan | AdaptivePlan, latents: Tensor, denoise: Denoise, noise: Noise = None
) -> Iterator[Step]:
    """Execute ``plan``, yielding after every step: the caller owns progress, preview and cancel.

    Args:
        plan: from `kdrt.sampling.make_plan`.
        latents: float32 ``[B, C, H, W]`` (or any shape and floating dtype: the state keeps it),
            already scaled by ``plan.sigmas[0]``. Not modified.
        denoise: ``(x, sigma) -> denoised``, of the shape and dtype of ``x``. It may return the
            same tensor every time: a result needed later is copied. It must not modify ``x``.
        noise: ``[len(plan.slots), *latents.shape]`` on the device of the latents, from a
            `NoiseSource`. May be None where the plan has no slots. For an adaptive plan, a
            function from an image's number to its next draw; needed where its ``eta`` is not 0.

    A plan that needs unconditional results (`Plan.needs_unconditional`) needs a denoiser with an
    attribute ``unconditional``: after a call, the result without guidance, shaped like the other.

    Raises:
        ValueError: at once, if ``noise`` is missing or misshapen; at the first evaluation, if
            ``denoise`` returns another shape or dtype.
    """
    if isinstance(plan, AdaptivePlan):
        return run_adaptive(plan, latents, lambda image: denoise, noise)
    if noise is not None and not isinstance(noise, Tensor):
        raise ValueError(f"{plan.sampler} needs its noise drawn before the run, as one tensor")
    return run_fixed(plan, latents, denoise, noise)


def sample(
    plan: Plan | AdaptivePlan, latents: Tensor, denoise: Denoise, noise: Noise = None
) -> Tensor:
    """Execute ``plan`` to its end and return the final state; arguments as for `run`."""
    result = latents
    for step in run(plan, latents, denoise, noise):
        result = step.latents
    return result
