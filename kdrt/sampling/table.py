"""A plan as a table of numbers, for stages that read all of them from the device.

The loop of `kdrt.sampling.run` passes each coefficient to the operation that uses it, as a Python
number. A captured CUDA graph would repeat those numbers, and images at different steps of different
samplers could not share an operation. Here the numbers lie in a table with a row for each stage,
and the operations of a stage are always the same:

    R = [start of the step, D₀, D₁, …, U₀, U₁, …]        registers
    new state = (coefficients of the row) · R + s·ξ       one matrix-vector product an image

so one stage serves every step of every plan. Results lie in a ring: that of stage k is in register
k modulo the length of the ring, and the coefficients of each row are in the order in which the ring
stands at its stage. `kdrt.sampling.slots` holds tables and registers, and does the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kdrt.sampling.plan import Correction, Plan, Stage

RING = 4
"""Results of the denoiser that are held, the newest included: no sampler of ours needs more."""

START, DENOISED, UNCONDITIONAL = 0, 1, 1 + RING
"""The first register of each kind."""

REGISTERS = 1 + 2 * RING
COEFFICIENTS = 2 * REGISTERS + 5
"""Numbers of a row besides the denoiser's: see `Row`."""


class Features(NamedTuple):
    """What plans need of a stage beyond the least: operations that others do without.

    Attributes:
        unconditional: results without guidance.
        noisy: noise is added.
        corrects: the start of a step is corrected.
        residual: x − D is held in place of D.
    """

    unconditional: bool = False
    noisy: bool = False
    corrects: bool = False
    residual: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Features:
        """What a plan needs."""
        return cls(
            unconditional=plan.needs_unconditional,
            noisy=bool(plan.slots),
            corrects=any(stage.correction for stage in plan.stages),
            residual=plan.residual,
        )

    def __or__(self, other: Features) -> Features:
        """What serves plans of either."""
        return Features(*(a or b for a, b in zip(self, other, strict=True)))

    @property
    def registers(self) -> int:
        """How many registers can have a coefficient that is not 0, from the first."""
        return REGISTERS if self.unconditional else UNCONDITIONAL


class Row(NamedTuple):
    """The numbers of one stage, and what it reads and writes by index.

    Attributes:
        coefficients: `COEFFICIENTS` numbers: of the new state by register; of the corrected start
            by register; the noise of either; whether the new state starts the next step; whether
            the start is corrected; and what is held as the result, 1 for D and 0 for x − D.
        result: the register of the result.
        unconditional: the register of the result without guidance.
        draws: the noise slots of the new state and of the corrected start; 0 without.
    """

    coefficients: tuple[float, ...]
    result: int
    unconditional: int
    draws: tuple[int, int]


def fits(plan: Plan) -> bool:
    """Whether the ring holds all results that a plan reads."""
    return plan.history <= RING


def rows(plan: Plan) -> list[Row]:
    """The table of a plan that :func:`fits`."""
    table = []
    for count, stage in enumerate(plan.stages):
        following = plan.stages[count + 1 : count + 2]
        # A step that ends in a state to be corrected keeps its start: the correction needs it.
        commits = stage.ends_step and not any(s.correction for s in following)
        correction = stage.correction or _NO_CORRECTION
        coefficients = (
            *_by_register(stage, count),
            *_by_register(correction, count),
            stage.noise if stage.slot is not None else 0.0,
            correction.noise if correction.slot is not None else 0.0,
            float(commits),
            float(stage.correction is not None),
            float(not plan.residual),
        )
        newest = count % RING
        table.append(
            Row(
                coefficients,
                DENOISED + newest,
                UNCONDITIONAL + newest,
                (stage.slot or 0, correction.slot or 0),
            )
        )
    return table


_NO_CORRECTION = Correction(1.0, ())


def _by_register(update: Stage | Correction, count: int) -> list[float]:
    """The coefficients of a stage's update, in the order of the registers."""
    values = [0.0] * REGISTERS
    values[START] = update.base
    _place(values, DENOISED, update.denoised, count)
    if isinstance(update, Stage):
        _place(values, UNCONDITIONAL, update.unconditional, count)
    return values


def _place(values: list[float], first: int, coefficients: Sequence[float], count: int) -> None:
    for back, coefficient in enumerate(coefficients):
        values[first + (count - back) % RING] = coefficient
