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
    return _steps(FixedRun(plan, latents, noise), denoise)


def _steps(run: FixedRun, denoise: Denoise) -> Iterator[Step]:
    guided = cast(HasUnconditional, denoise)
    while not run.is_finished:
        # Restored before the step is handed over: the caller's code runs in the caller's mode.
        callers = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            denoised = denoise(run.state, run.sigma)
            step = run.advance(denoised, guided.unconditional if run.needs_unconditional else None)
        finally:
            _set_grad_enabled(callers)
        if step is not None:
            yield step


class FixedRun:
    """A run of a plan with fixed steps, one evaluation at a time: the caller evaluates.

    Attributes:
        state: what is to be evaluated next, a working buffer.
        sigma: at this noise level.
        needs_unconditional: results without guidance are needed too.
        is_finished: all evaluations are made, and ``state`` is the result.

    Args:
        plan: see `kdrt.sampling.run`, as for ``latents`` and ``noise``.
        latents: see there.
        noise: see there.

    Raises:
        ValueError: ``noise`` is missing or misshapen.
    """

    __slots__ = (
        "_checked",
        "_count",
        "_operations",
        "_registers",
        "_stages",
        "is_finished",
        "needs_unconditional",
        "sigma",
        "state",
    )

    @torch.no_grad()
    def __init__(self, plan: Plan, latents: Tensor, noise: Tensor | None = None) -> None:
        _check_noise(plan, latents, noise)
        program, (prologue, *operations) = _compiled(plan, latents.dtype)
        registers = _registers(program, latents, noise)
        for function, out, first, second, number in prologue:
            function(registers[out], registers[first], registers[second], number)
        self._registers, self._stages, self._operations = registers, program.stages, operations
        self._checked: Tensor | None = None
        self._count = 0
        self.needs_unconditional = program.needs_unconditional
        self.is_finished = False
        self.state, self.sigma = registers[program.start], program.stages[0].sigma

    def advance(self, denoised: Tensor, unconditional: Tensor | None = None) -> Step | None:
        """Go on from an evaluation. Without gradients: that is for the caller to see to.

        Args:
            denoised: the denoiser's result of ``state`` at ``sigma``.
            unconditional: the same without guidance, where it is needed.

        Returns:
            The step that it completes, if it completes one.

        Raises:
            ValueError: ``denoised`` has another shape or dtype.
        """
        registers, stage = self._registers, self._stages[self._count]
        if denoised is not self._checked:
            _check_denoised(denoised, self.state)
            self._checked = denoised
        # The state may be overwritten while the result is still read.
        registers[DENOISED] = denoised.clone() if denoised is self.state else denoised
        if unconditional is not None:
            registers[UNCONDITIONAL] = unconditional
        for function, out, first, second, number in self._operations[self._count]:
            function(registers[out], registers[first], registers[second], number)
        self._count += 1
        self.state = registers[stage.result]
        if self._count < len(self._stages):
            self.sigma = self._stages[self._count].sigma
        else:
            self.is_finished = True
        if stage.ending is None:
            return None
        return Step(*stage.ending, self.state, registers[DENOISED])


def _check_noise(plan: Plan, latents: Tensor, noise: Tensor | None) -> None:
    expected = (len(plan.slots), *latents.shape)
    if noise is None:
        if plan.slots:
            raise ValueError(f"{plan.sampler} needs noise of shape {list(expected)}, got none")
    elif tuple(noise.shape) != expected:
        raise ValueError(
            f"{plan.sampler} needs noise of shape {list(expected)}, got {list(noise.shape)}"
        )


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
