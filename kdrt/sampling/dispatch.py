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
    """Execute ``plan`` and yield after every step, so that the caller can show progress and
    previews, and cancel.

    A plan that needs unconditional results (`Plan.needs_unconditional`) needs a denoiser with an
    attribute ``unconditional``: after a call, it holds the result without guidance, of the same
    shape as the other.

    Args:
        plan: from `kdrt.sampling.make_plan`.
        latents: float32 ``[B, C, H, W]`` (or any other shape and floating dtype, which the state
            keeps), already scaled by ``plan.sigmas[0]``. Not modified.
        denoise: ``(x, sigma) -> denoised``, of the shape and dtype of ``x``. It may return the
            same tensor every time, because results that are needed later are copied. It must not
            modify ``x``.
        noise: ``[len(plan.slots), *latents.shape]`` on the device of the latents, from a
            `NoiseSource`. May be None if the plan has no slots. For an adaptive plan, a function
            from the number of an image to its next draw; needed if the plan's ``eta`` is not 0.

    Raises:
        ValueError: raised at once if ``noise`` is missing or has the wrong shape; raised at the
            first evaluation if ``denoise`` returns another shape or dtype.
    """
    if isinstance(plan, AdaptivePlan):
        return run_adaptive(plan, latents, lambda image: denoise, noise)
    if noise is not None and not isinstance(noise, Tensor):
        raise ValueError(f"{plan.sampler} needs its noise drawn before the run, as one tensor")
    return run_fixed(plan, latents, denoise, noise)


def sample(
    plan: Plan | AdaptivePlan, latents: Tensor, denoise: Denoise, noise: Noise = None
) -> Tensor:
    """Execute ``plan`` to its end and return the final state, of the shape and dtype of
    ``latents``. Arguments and errors are those of `run`."""
    result = latents
    for step in run(plan, latents, denoise, noise):
        result = step.latents
    return result
