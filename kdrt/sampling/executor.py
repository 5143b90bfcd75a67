"""Running a plan with fixed steps, one at a time.

The loop owns a fixed set of buffers and runs a compiled `Program` on them: it allocates no
tensor, reads none back and branches on none, so on a GPU it only enqueues. Between two calls of
the denoiser lie one to six elementwise operations, and hardly any Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

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
from kdrt.sampling.step import Denoise, HasUnconditional, Step

_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""What ``torch.no_grad`` calls, without the two microseconds a step that its objects cost."""


def run_fixed(
    plan: Plan, latents: Tensor, denoise: Denoise, noise: Tensor | None = None
) -> Iterator[Step]:
    """As `kdrt.sampling.run`, for plans with fixed steps.

    Raises:
        ValueError: at once, if ``noise`` is missing or misshapen; at the first evaluation, if
            ``denoise`` returns another shape or dtype.
    """
    expected = (len(plan.slots), *latents.shape)
    if noise is None:
        if plan.slots:
            raise ValueError(f"{plan.sampler} needs noise of shape {list(expected)}, got none")
    elif tuple(noise.shape) != expected:
        raise ValueError(
            f"{plan.sampler} needs noise of shape {list(expected)}, got {list(noise.shape)}"
        )
    return _steps(plan, latents, denoise, noise)


def _steps(plan: Plan, latents: Tensor, denoise: Denoise, noise: Tensor | None) -> Iterator[Step]:
    program, (prologue, *operations) = _compiled(plan, latents.dtype)
    registers = _registers(program, latents, noise)
    with torch.no_grad():
        for function, out, first, second, number in prologue:
            function(registers[out], registers[first], registers[second], number)
    guided = cast(HasUnconditional, denoise)
    checked: Tensor | None = None
    for stage, updates in zip(program.stages, operations, strict=True):
        sigma, source, _, result, ending = stage
        # Restored before the step is handed over: the caller's code runs in the caller's mode.
        callers = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            state = registers[source]
            denoised = denoise(state, sigma)
            if denoised is not checked:
                _check_denoised(denoised, state)
                checked = denoised
            # The state may be overwritten while the result is still read.
            registers[DENOISED] = denoised.clone() if denoised is state else denoised
            if program.needs_unconditional:
                registers[UNCONDITIONAL] = guided.unconditional
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
    """The instructions of the prologue and of each stage, with their functions.

    ``torch.mul`` makes a tensor of a Python number at every call. A factor that already is a
    tensor without dimensions, on the host, costs nothing, wherever the state is.
    """
    parts = [program.prologue, *(stage.instructions for stage in program.stages)]
    factors = [i.coefficient for part in parts for i in part if i.operation == "scale"]
    table = iter(torch.tensor(factors, dtype=torch.promote_types(dtype, torch.float32)).unbind())
    return [
        [
            (_FUNCTIONS[name], out, first, second, next(table) if name == "scale" else coefficient)
            for name, out, first, second, coefficient in part
        ]
        for part in parts
    ]
