"""Running a plan, one step at a time.

The loop owns a fixed set of buffers and updates them in place: it allocates no tensor, reads
none back and branches on none, so on a GPU it only enqueues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.sampling.plan import Correction, Plan, Stage
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan

Denoise = Callable[[Tensor, float], Tensor]

Noise = Tensor | Callable[[int], Tensor] | None
"""Of a plan's slots, or for an adaptive plan: from an image's number to its next draw."""


@dataclass(frozen=True, slots=True)
class Step:
    """A completed step. Its tensors are working buffers, valid until the next step is asked for.

    Attributes:
        index: 0 for the first step.
        sigma: noise level at the start of the step.
        sigma_next: noise level at its end.
        latents: the new state, of the latents' shape, dtype and device. Where the next step is
            churned, its noise is already in.
        denoised: the newest result of the denoiser (a preview of the image).
    """

    index: int
    sigma: float
    sigma_next: float
    latents: Tensor
    denoised: Tensor


def run(
    plan: Plan,
    latents: Tensor,
    denoise: Denoise,
    noise: Noise = None,
) -> Iterator[Step]:
    """Execute ``plan``, yielding after every step: the caller owns progress, preview and cancel.

    Args:
        plan: from `kdrt.sampling.plan`.
        latents: float32 ``[B, C, H, W]`` (or any shape and floating dtype: the state keeps it),
            already scaled by ``plan.sigmas[0]``. Not modified.
        denoise: ``(x, sigma) -> denoised``, of the shape and dtype of ``x``. It may return the
            same tensor every time: a result needed later is copied. It must not modify ``x``.
        noise: ``[len(plan.slots), *latents.shape]`` on the device of the latents, from a
            `NoiseSource`. May be None where the plan has no slots. An adaptive plan has none, and
            takes a function from an image's number to its next draw where its ``eta`` is not 0.

    A plan that needs unconditional results (`Plan.needs_unconditional`) wants a denoiser with an
    attribute ``unconditional``: after a call, the result without guidance, shaped like the other.

    Raises:
        ValueError: at once, if ``noise`` is missing or misshapen; at the first evaluation, if
            ``denoise`` returns another shape or dtype.
    """
    if isinstance(plan, AdaptivePlan):
        # Imported late: it is built on this module.
        from kdrt.sampling.adaptive import run_adaptive

        return run_adaptive(plan, latents, lambda image: denoise, noise)
    if noise is not None and not isinstance(noise, Tensor):
        raise ValueError(f"{plan.sampler} needs its noise drawn before the run, as one tensor")
    expected = (len(plan.slots), *latents.shape)
    if noise is None:
        if plan.slots:
            raise ValueError(f"{plan.sampler} needs noise of shape {list(expected)}, got none")
    elif tuple(noise.shape) != expected:
        raise ValueError(
            f"{plan.sampler} needs noise of shape {list(expected)}, got {list(noise.shape)}"
        )
    return _steps(plan, latents, denoise, noise)


def sample(plan: Plan, latents: Tensor, denoise: Denoise, noise: Noise = None) -> Tensor:
    """Execute ``plan`` to its end and return the final state; arguments as for `run`."""
    result = latents
    for step in run(plan, latents, denoise, noise):
        result = step.latents
    return result


@torch.no_grad()
def _steps(plan: Plan, latents: Tensor, denoise: Denoise, noise: Tensor | None) -> Iterator[Step]:
    start = latents.clone()  # the state at the start of the step
    between = torch.empty_like(start)  # a state that is only evaluated
    ring = [torch.empty_like(start) for _ in range(plan.history)]
    unguided = [torch.empty_like(start) for _ in ring] if plan.needs_unconditional else []
    kept = _needed_later(plan)
    if plan.initial_slot is not None and noise is not None:
        start.add_(noise[plan.initial_slot], alpha=plan.initial_noise)

    state = start
    index = 0
    for count, stage in enumerate(plan.stages):
        denoised = denoise(state, stage.sigma)
        if denoised.shape != state.shape or denoised.dtype != state.dtype:
            raise ValueError(
                f"the denoiser returned {denoised.dtype} {list(denoised.shape)}, "
                f"expected {state.dtype} {list(state.shape)}"
            )
        newest = count % len(ring)
        if plan.residual:
            torch.sub(state, denoised, out=ring[newest])
        elif kept[count] or denoised is state:
            denoised = ring[newest].copy_(denoised)
        if unguided:
            unguided[newest].copy_(denoise.unconditional)  # type: ignore[attr-defined]

        results = [ring[(count - back) % len(ring)] for back in range(len(ring))]
        if not plan.residual:
            results[0] = denoised
        if stage.correction is not None:
            _combine(_terms(stage.correction, start, results, noise), out=start)
        terms = _terms(stage, start, results, noise)
        for back, coefficient in enumerate(stage.unconditional):
            terms.append((coefficient, unguided[(count - back) % len(ring)]))
        # A step that ends in a state to be corrected keeps its start: the correction needs it.
        corrected = count + 1 < len(plan.stages) and plan.stages[count + 1].correction is not None
        state = start if stage.ends_step and not corrected else between
        _combine(terms, out=state)

        if stage.ends_step:
            yield Step(index, plan.sigmas[index], plan.sigmas[index + 1], state, denoised)
            index += 1


def _terms(
    update: Stage | Correction, start: Tensor, results: list[Tensor], noise: Tensor | None
) -> list[tuple[float, Tensor]]:
    terms = [(update.base, start), *zip(update.denoised, results, strict=False)]
    if update.slot is not None and noise is not None:
        terms.append((update.noise, noise[update.slot]))
    return terms


def _combine(terms: list[tuple[float, Tensor]], out: Tensor) -> None:
    """``out = Σ coefficient · tensor``. Only the first tensor may be ``out`` itself."""
    terms = [(coefficient, tensor) for coefficient, tensor in terms if coefficient != 0]
    if not terms:
        out.zero_()
        return
    coefficient, tensor = terms[0]
    if tensor is not out or coefficient != 1:
        torch.mul(tensor, coefficient, out=out)
    for coefficient, tensor in terms[1:]:
        out.add_(tensor, alpha=coefficient)


def _needed_later(plan: Plan) -> list[bool]:
    """For every stage, whether a later one reads its result: only those are copied."""
    needed = [False] * len(plan.stages)
    for count, stage in enumerate(plan.stages):
        updates: list[Stage | Correction] = [stage]
        if stage.correction is not None:
            updates.append(stage.correction)
        for update in updates:
            for back, coefficient in enumerate(update.denoised[1:], start=1):
                if coefficient != 0:
                    needed[count - back] = True
    return needed
