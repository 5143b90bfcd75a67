"""A plan as a table on the device, and the one stage that any row of it drives.

The loop of `kdrt.sampling.run` passes each coefficient to the operation that uses it, as a Python
number. A captured CUDA graph would repeat those numbers. Here they lie in a table on the device,
and the operations of a stage are always the same:

    R = [start of the step, D₀, D₁, …, U₀, …, ξ]         registers, one row each
    new state = (row of the table) · R                    one matrix-vector product

so one captured stage serves every step of every plan of the same `Layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdrt.sampling.plan import Correction, Plan, Stage
from kdrt.sampling.step import HasUnconditional, Step

_FIRST_DENOISED = 1


class TableDenoise(HasUnconditional, Protocol):
    """A denoiser that can read the scalars of a σ on the device."""

    def scalars(self, sigma: float) -> tuple[float, float, float, float]:
        """(c_in, timestep, c_skip, c_out) of a noise level."""
        ...

    def denoise(self, x: Tensor, scalars: Tensor, kind: Any) -> Tensor:
        """Denoise ``x`` with those scalars, float32 ``[4]`` on the device of ``x``. Evaluations
        of one ``kind`` enqueue the same operations."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """What the operations of a stage depend on. Plans of one layout share a loop.

    Attributes:
        history: how many results of the denoiser are held, the newest included.
        unconditional: they are held without guidance too.
        noisy: some stage adds noise.
        corrects: some stage corrects its start.
        residual: see `Plan.residual`.
        stages: rows of the table.
        slots: draws that fit.
    """

    history: int
    unconditional: bool
    noisy: bool
    corrects: bool
    residual: bool
    stages: int
    slots: int

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """The layout of a plan. Numbers of stages and draws are rounded up to powers of two, so
        that 20 and 30 steps share one."""
        return cls(
            history=plan.history,
            unconditional=plan.needs_unconditional,
            noisy=bool(plan.slots),
            corrects=any(stage.correction for stage in plan.stages),
            residual=plan.residual,
            stages=_power_of_two(len(plan.stages)),
            slots=_power_of_two(len(plan.slots)),
        )

    @property
    def registers(self) -> int:
        return 1 + self.history * (1 + self.unconditional) + self.noisy * (1 + self.corrects)


class TableLoop:
    """The registers of a run and the operations of one stage.

    `load` prepares a run. `stage` then does the next stage, whichever it is: it is told only the
    kind of evaluation, allocates nothing and reads nothing back, so a captured call can be
    replayed in its place.

    Args:
        layout: of the plans it will run.
        denoise: the denoiser.
        like: latents of the shape, dtype and device of the runs.
    """

    def __init__(self, layout: Layout, denoise: TableDenoise, like: Tensor) -> None:
        self.layout = layout
        self._denoise = denoise
        shape, count = like.shape, layout.registers
        new = like.new_zeros
        self._registers = new(count, like.numel())
        self._columns = self._registers.t()
        self._rows = [self._registers[index].view(shape) for index in range(count)]
        self._table = new(layout.stages, _width(layout), dtype=torch.float32)
        self._row = new(1, _width(layout), dtype=torch.float32)
        self._slots = torch.zeros(2, layout.stages, dtype=torch.int64, device=like.device)
        self._slot = torch.zeros(2, 1, dtype=torch.int64, device=like.device)
        self._noise = new(layout.slots, like.numel())
        self._index = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._state = new(shape)
        self._corrected = new(like.numel())
        self.denoised = self._state
        """The newest result of the denoiser, after `stage`."""

        # Views of the row are made once, for the operations below.
        scalars, coefficients, correction, commits, corrects = torch.split(
            self._row[0], [4, count, count, 1, 1]
        )
        self._scalars, self._coefficients, self._correction = scalars, coefficients, correction
        self._commits, self._corrects = commits[0], corrects[0]

    @torch.no_grad()
    def load(self, plan: Plan, latents: Tensor, noise: Tensor | None) -> None:
        """Start a run; arguments as for `kdrt.sampling.run`."""
        table, slots = _table(plan, self.layout, self._denoise)
        self._table[: len(table)].copy_(torch.tensor(table))
        self._slots[:, : len(slots)].copy_(torch.tensor(slots).t())
        self._registers.zero_()  # a coefficient of 0 must not meet what is not finite
        if noise is not None:
            self._noise[: len(noise)].copy_(noise.flatten(1))
        start = self._rows[0]
        start.copy_(latents)
        if plan.initial_slot is not None and noise is not None:
            start.add_(noise[plan.initial_slot], alpha=plan.initial_noise)
        self._state.copy_(start)
        self._index.zero_()

    @torch.no_grad()
    def stage(self, kind: Hashable = None) -> None:
        """Evaluate the denoiser once, and compute the state that follows."""
        layout, rows = self.layout, self._rows
        torch.index_select(self._table, 0, self._index, out=self._row)
        self.denoised = self._denoise.denoise(self._state, self._scalars, kind)

        newest = _FIRST_DENOISED
        self._push(newest)
        if layout.residual:
            torch.sub(self._state, self.denoised, out=rows[newest])
        else:
            rows[newest].copy_(self.denoised)
        if layout.unconditional:
            self._push(newest + layout.history)
            rows[newest + layout.history].copy_(self._denoise.unconditional)
        if layout.noisy:
            self._fetch_noise()

        start = self._registers[0]
        state = self._state.view(-1)
        if layout.corrects:
            torch.mv(self._columns, self._correction, out=self._corrected)
            # A weight of 0 or 1 leaves the one or the other as it is, exactly.
            torch.lerp(start, self._corrected, self._corrects, out=start)
        torch.mv(self._columns, self._coefficients, out=state)
        torch.lerp(start, state, self._commits, out=start)
        self._index.add_(1)

    @property
    def state(self) -> Tensor:
        """The newest state."""
        return self._state

    def _push(self, newest: int) -> None:
        for back in range(self.layout.history - 1, 0, -1):
            self._rows[newest + back].copy_(self._rows[newest + back - 1])

    def _fetch_noise(self) -> None:
        torch.index_select(self._slots, 1, self._index, out=self._slot)
        draws = 1 + self.layout.corrects
        for draw in range(draws):
            row = self.layout.registers - draws + draw
            register = self._registers[row : row + 1]
            torch.index_select(self._noise, 0, self._slot[draw], out=register)


def run_table(
    loop: TableLoop,
    plan: Plan,
    latents: Tensor,
    noise: Tensor | None,
    stages: Iterable[Callable[[], None]],
) -> Iterator[Step]:
    """As `kdrt.sampling.run`, by the stages of ``loop``.

    Args:
        loop: of the plan's layout.
        plan: see `kdrt.sampling.run`, as for ``latents`` and ``noise``.
        latents: see there.
        noise: see there.
        stages: one a stage of the plan: `TableLoop.stage`, or the replay of a graph that captured
            it.
    """
    loop.load(plan, latents, noise)
    index = 0
    for stage, do_stage in zip(plan.stages, stages, strict=True):
        do_stage()
        if stage.ends_step:
            sigmas = plan.sigmas
            yield Step(index, sigmas[index], sigmas[index + 1], loop.state, loop.denoised)
            index += 1


def _width(layout: Layout) -> int:
    return 4 + 2 * layout.registers + 2


def _table(
    plan: Plan, layout: Layout, denoise: TableDenoise
) -> tuple[list[list[float]], list[tuple[int, int]]]:
    """The rows of a plan: scalars of the denoiser, coefficients of the new state, coefficients of
    the correction, whether the new state starts the next step, whether the start is corrected."""
    table, slots = [], []
    for count, stage in enumerate(plan.stages):
        following = plan.stages[count + 1 : count + 2]
        # A step that ends in a state to be corrected keeps its start: the correction needs it.
        commits = stage.ends_step and not any(s.correction for s in following)
        correction = stage.correction
        table.append(
            [
                *denoise.scalars(stage.sigma),
                *_coefficients(stage, stage.unconditional, layout, draw=0),
                *_coefficients(correction or _NO_CORRECTION, (), layout, draw=1),
                float(commits),
                float(correction is not None),
            ]
        )
        slots.append((stage.slot or 0, correction.slot or 0 if correction else 0))
    return table, slots


_NO_CORRECTION = Correction(1.0, ())


def _coefficients(
    update: Stage | Correction, unconditional: tuple[float, ...], layout: Layout, draw: int
) -> list[float]:
    """One coefficient a register."""
    values = [update.base, *_padded(update.denoised, layout.history)]
    if layout.unconditional:
        values += _padded(unconditional, layout.history)
    if layout.noisy:
        draws = [0.0] * (1 + layout.corrects)
        if update.slot is not None:
            draws[draw] = update.noise
        values += draws
    return values


def _padded(values: tuple[float, ...], length: int) -> list[float]:
    return [*values, *[0.0] * (length - len(values))]


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
