"""A plan compiled: the fewest elementwise operations on numbered buffers.

Everything the loop would otherwise decide at each step is decided here, once: which coefficients
are zero, which results a later stage reads again, which buffer of a ring is meant, and whether a
sum of terms is an interpolation. A program holds no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kdrt.sampling.plan import Correction, Plan, Stage

Operation = Literal["copy", "scale", "add", "lerp"]

DENOISED, UNCONDITIONAL, NOISE = 0, 1, 2
"""Registers: the denoiser's newest results, and the first noise slot; buffers follow the slots."""

_EXACT = 4e-15
_STABLE = (0.5, 2.0)


class Instruction(NamedTuple):
    """One elementwise operation, c its coefficient and the operands registers.

    ``copy`` out = first · ``scale`` out = c·first · ``add`` out = first + c·second ·
    ``lerp`` out = first + c·(second - first)
    """

    operation: Operation
    out: int
    first: int
    second: int
    coefficient: float


class Ending(NamedTuple):
    """The step that a stage completes, counted from 0."""

    step: int
    sigma: float
    sigma_next: float


class CompiledStage(NamedTuple):
    """A call of the denoiser at ``sigma`` on register ``source``, then what follows from it: the
    new state, in register ``result``."""

    sigma: float
    source: int
    instructions: tuple[Instruction, ...]
    result: int
    ending: Ending | None


@dataclass(frozen=True, slots=True)
class Program:
    """What the executor runs.

    Attributes:
        prologue: before the first stage (churn).
        stages: all of them, in order.
        start: the register that holds the latents given; the first of the buffers.
        buffers: how many buffers there are, shaped like the latents.
        needs_unconditional: some instruction reads `UNCONDITIONAL`.
    """

    prologue: tuple[Instruction, ...]
    stages: tuple[CompiledStage, ...]
    start: int
    buffers: int
    needs_unconditional: bool


def compile_plan(plan: Plan) -> Program:
    """Compile ``plan``; costs some ten microseconds a stage."""
    return _Compiler(plan).program()


class _Compiler:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._history = plan.history
        self._kept = _read_again(plan)
        self._buffers: dict[tuple[str, int], int] = {}
        self._start = self._buffer("start")

    def program(self) -> Program:
        plan = self._plan
        prologue: tuple[Instruction, ...] = ()
        if plan.initial_slot is not None:
            noise = NOISE + plan.initial_slot
            added = Instruction("add", self._start, self._start, noise, plan.initial_noise)
            prologue = (added,)
        return Program(
            prologue=prologue,
            stages=tuple(self._stages()),
            start=self._start,
            buffers=len(self._buffers),
            needs_unconditional=plan.needs_unconditional,
        )

    def _stages(self) -> Iterator[CompiledStage]:
        stages, sigmas = self._plan.stages, self._plan.sigmas
        state = self._start
        step = 0
        for count, stage in enumerate(stages):
            source = state
            instructions = list(self._remember(count, state))
            if stage.correction is not None:
                terms = self._terms(count, stage.correction)
                instructions += _combine(terms, self._noise(stage.correction), self._start)
            # A step that ends in a state to be corrected keeps its start: the correction needs it.
            corrected = count + 1 < len(stages) and stages[count + 1].correction is not None
            state = self._start if stage.ends_step and not corrected else self._buffer("between")
            terms = self._terms(count, stage)
            for back, coefficient in enumerate(stage.unconditional):
                register = UNCONDITIONAL if back == 0 else self._past("unguided", count - back)
                terms.append((coefficient, register))
            instructions += _combine(terms, self._noise(stage), state)
            ending = None
            if stage.ends_step:
                ending = Ending(step, sigmas[step], sigmas[step + 1])
                step += 1
            yield CompiledStage(stage.sigma, source, tuple(instructions), state, ending)

    def _remember(self, count: int, state: int) -> Iterator[Instruction]:
        """Keep what the denoiser, which may use its buffers again, has just returned."""
        result_kept, unguided_kept = self._kept[count]
        if self._plan.residual:
            residual = self._past("result", count)
            yield Instruction("add", residual, state, DENOISED, -1.0)
        elif result_kept:
            yield Instruction("copy", self._past("result", count), DENOISED, DENOISED, 1.0)
        if unguided_kept:
            unguided = self._past("unguided", count)
            yield Instruction("copy", unguided, UNCONDITIONAL, UNCONDITIONAL, 1.0)

    def _terms(self, count: int, update: Stage | Correction) -> list[tuple[float, int]]:
        terms = [(update.base, self._start)]
        for back, coefficient in enumerate(update.denoised):
            newest = back == 0 and not self._plan.residual
            if coefficient != 0:
                register = DENOISED if newest else self._past("result", count - back)
                terms.append((coefficient, register))
        return terms

    def _noise(self, update: Stage | Correction) -> list[tuple[float, int]]:
        return [] if update.slot is None else [(update.noise, NOISE + update.slot)]

    def _past(self, kind: str, count: int) -> int:
        """The register of the result of stage ``count``: a ring of ``history`` buffers."""
        return self._buffer(kind, count % self._history)

    def _buffer(self, kind: str, index: int = 0) -> int:
        first = NOISE + len(self._plan.slots)
        return self._buffers.setdefault((kind, index), first + len(self._buffers))


def _combine(
    terms: Sequence[tuple[float, int]], noise: Sequence[tuple[float, int]], out: int
) -> Iterator[Instruction]:
    """``out = Σ coefficient · register``. Only the first register may be ``out`` itself."""
    present = [term for term in terms if term[0] != 0] or [(0.0, DENOISED)]
    (coefficient, register), *rest = present
    weights = _interpolation([coefficient for coefficient, _ in present])
    if weights is not None:
        for weight, (_, other) in zip(weights, rest, strict=True):
            yield Instruction("lerp", out, register, other, weight)
            register = out
        rest = []
    elif coefficient != 1:
        yield Instruction("scale", out, register, register, coefficient)
        register = out
    for coefficient, other in (*rest, *noise):
        yield Instruction("add", out, register, other, coefficient)
        register = out
    if register != out:
        yield Instruction("copy", out, register, register, 1.0)


def _interpolation(coefficients: Sequence[float]) -> list[float] | None:
    """The weights with which a sum becomes a chain of interpolations, an operation less than the
    sum itself; None where coefficients do not add up to 1, as they do in a method that leaves a
    finished image alone, or where a partial sum is small and a weight would amplify rounding."""
    if len(coefficients) < 2 or not math.isclose(math.fsum(coefficients), 1, rel_tol=_EXACT):
        return None
    low, high = _STABLE
    total = coefficients[0]
    weights = []
    for coefficient in coefficients[1:]:
        total += coefficient
        if not low <= total <= high:
            return None
        weights.append(coefficient / total)
    return weights


def _read_again(plan: Plan) -> list[tuple[bool, bool]]:
    """For every stage, whether a later one reads its result, and its result without guidance."""
    results, unguided = [False] * len(plan.stages), [False] * len(plan.stages)
    for count, stage in enumerate(plan.stages):
        updates: list[Stage | Correction] = [stage]
        if stage.correction is not None:
            updates.append(stage.correction)
        for update in updates:
            _mark(results, count, update.denoised)
        _mark(unguided, count, stage.unconditional)
    return list(zip(results, unguided, strict=True))


def _mark(read: list[bool], count: int, coefficients: Sequence[float]) -> None:
    for back, coefficient in enumerate(coefficients[1:], start=1):
        if coefficient != 0:
            read[count - back] = True
