"""Running a plan, one step at a time.

The loop owns a fixed set of buffers and runs a compiled `Program` on them: it allocates no
tensor, reads none back and branches on none, so on a GPU it only enqueues. Between two calls of
the denoiser lie one to six elementwise operations, and hardly any Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kdrt.sampling.plan import Plan
from kdrt.sampling.program import (
    DENOISED,
    UNCONDITIONAL,
    Operation,
    Program,
    compile_plan,
)
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan

_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""What ``torch.no_grad`` calls, without the two microseconds a step that its objects cost."""

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


def _steps(plan: Plan, latents: Tensor, denoise: Denoise, noise: Tensor | None) -> Iterator[Step]:
    program, (prologue, *operations) = _compiled(plan, latents.dtype)
    registers = _registers(program, latents, noise)
    with torch.no_grad():
        for function, out, first, second, number in prologue:
            function(registers[out], registers[first], registers[second], number)
    known: Tensor | None = None
    for evaluation, updates in zip(program.evaluations, operations, strict=True):
        sigma, source, _, result, ending = evaluation
        # Left again before the step is handed over: the caller's code runs in the caller's mode.
        callers = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            state = registers[source]
            denoised = denoise(state, sigma)
            if denoised is not known:
                _check_denoised(denoised, state)
                known = denoised
            # The state may be overwritten while the result is still read.
            registers[DENOISED] = denoised.clone() if denoised is state else denoised
            if program.needs_unconditional:
                registers[UNCONDITIONAL] = denoise.unconditional  # type: ignore[attr-defined]
            for function, out, first, second, number in updates:
                function(registers[out], registers[first], registers[second], number)
        finally:
            _set_grad_enabled(callers)
        if ending is not None:
            index, sigma, sigma_next = ending
            yield Step(index, sigma, sigma_next, registers[result], registers[DENOISED])


@lru_cache(maxsize=16)
def _compiled(plan: Plan, dtype: torch.dtype) -> tuple[Program, list[list[_Bound]]]:
    """A plan as the loop runs it, the same for all images made with it."""
    program = compile_plan(plan)
    return program, _bound(program, dtype)


@torch.no_grad()
def _registers(program: Program, latents: Tensor, noise: Tensor | None) -> list[Tensor]:
    """The tensors of a program's registers; what the denoiser returns is put in as it comes."""
    slots = [] if noise is None else list(noise.unbind(0))
    buffers = [torch.empty_like(latents) for _ in range(program.buffers)]
    registers = [latents, latents, *slots, *buffers]
    registers[program.start].copy_(latents)
    return registers


def _check_denoised(denoised: Tensor, state: Tensor) -> None:
    if denoised.shape != state.shape or denoised.dtype != state.dtype:
        raise ValueError(
            f"the denoiser returned {denoised.dtype} {list(denoised.shape)}, "
            f"expected {state.dtype} {list(state.shape)}"
        )


_Function = Callable[[Tensor, Tensor, Tensor, Any], object]
_Bound = tuple[_Function, int, int, int, float | Tensor]
_FUNCTIONS: Mapping[Operation, _Function] = MappingProxyType(
    {
        "copy": lambda out, first, second, number: out.copy_(first),
        "scale": lambda out, first, second, number: torch.mul(first, number, out=out),
        "add": lambda out, first, second, number: torch.add(first, second, alpha=number, out=out),
        "lerp": lambda out, first, second, number: torch.lerp(first, second, number, out=out),
    }
)


def _bound(program: Program, dtype: torch.dtype) -> list[list[_Bound]]:
    """The instructions of the prologue and of each evaluation, with their functions.

    PyTorch makes a tensor of a factor at every call of ``mul``, but not of one that already is a
    tensor without dimensions; wherever the state is, such a factor belongs on the host.
    """
    parts = [program.prologue, *(each.instructions for each in program.evaluations)]
    factors = [i.coefficient for part in parts for i in part if i.operation == "scale"]
    table = iter(torch.tensor(factors, dtype=torch.promote_types(dtype, torch.float32)).unbind())
    return [
        [
            (_FUNCTIONS[name], out, first, second, next(table) if name == "scale" else coefficient)
            for name, out, first, second, coefficient in part
        ]
        for part in parts
    ]
