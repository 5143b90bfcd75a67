"""The states of several images on the device, each at a stage of its own plan.

A *slot* holds one image: its registers, the table of its plan (`kdrt.sampling.table`), its noise,
and a cursor that says at which row of the table it stands. A *tick* takes some of the slots one
stage further: it gathers their states and the numbers of their rows, evaluates the denoiser once,
and writes back what follows. Where an image stands is known to the device alone, so a captured tick
can be replayed for ever, and images of different samplers, at different steps, share it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kdrt.common.upload import upload
from kdrt.sampling.plan import Plan
from kdrt.sampling.step import HasUnconditional
from kdrt.sampling.table import (
    COEFFICIENTS,
    REGISTERS,
    START,
    Features,
    Row,
    rows,
)

_INDICES = 5
"""Of a row: registers of both results, draws of both noises, and how far the cursor advances."""

StageNumbers = Sequence[Sequence[Any]]
"""For each stage of a plan, the numbers that the denoiser needs of it."""


class SlotDenoise(HasUnconditional, Protocol):
    """A denoiser that reads its numbers on the device."""

    def denoise(self, x: Tensor, numbers: Tensor, kind: Any) -> Tensor:
        """Denoise ``x [n, C, h, w]``, with ``numbers [n, K]`` of its images, float32 on the same
        device. Evaluations of one ``kind`` enqueue the same operations."""
        ...


class Slots:
    """The states of up to S images of one shape.

    Slot S, beyond the last, belongs to nobody: ticks of more images than there are take it in the
    places left over. It never advances.

    Attributes:
        count: S.
        shape: of an image's latents, ``(C, h, w)``.
        state: ``[S + 1, C, h, w]``: the newest state of each.
        version: another number whenever memory has moved, so that captured ticks are void.

    Args:
        count: S.
        shape: ``(C, h, w)``.
        width: K, how many numbers the denoiser needs for a stage.
        device: of everything here; all numbers are float32.
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        width: int,
        device: torch.device,
    ) -> None:
        self.count = count
        self.shape = tuple(shape)
        self.version = 0
        self._width = width
        slots, size = count + 1, torch.Size(shape).numel()
        self.state = torch.zeros(slots, *shape, device=device)
        self.registers = torch.zeros(slots, REGISTERS, size, device=device)
        self.cursor = torch.arange(slots, device=device)
        self.table = torch.zeros(slots, width + COEFFICIENTS, device=device)
        self.indices = torch.zeros(_INDICES, slots, dtype=torch.int64, device=device)
        self.indices[:2] = torch.arange(slots, device=device) * REGISTERS + START
        self.noise = torch.zeros(slots, size, device=device)
        self._stages = self._draws = 1

    @torch.no_grad()
    def load(
        self,
        slots: range,
        plan: Plan,
        latents: Tensor,
        noise: Tensor | None,
        numbers: StageNumbers,
    ) -> None:
        """Put B images of one plan into as many slots, in place of what they held.

        Args:
            slots: from 0 to S - 1.
            plan: one that `kdrt.sampling.table.fits`.
            latents: ``[B, C, h, w]``, scaled by ``plan.sigmas[0]``.
            noise: ``[len(plan.slots), B, C, h, w]``; None where the plan has no slots.
            numbers: for each stage.
        """
        self._reserve(len(plan.stages), len(plan.slots))
        table = rows(plan)
        floats = torch.tensor(
            [[*own, *row.coefficients] for own, row in zip(numbers, table, strict=True)]
        )
        indices = torch.tensor([_indices(row) for row in table]).t().contiguous()
        start = latents.flatten(1)
        if noise is not None and plan.initial_slot is not None:
            added = torch.empty_like(start)
            upload(added, noise[plan.initial_slot].flatten(1))
            start = torch.add(start, added, alpha=plan.initial_noise)
        for image, slot in enumerate(slots):
            first = slot * self._stages
            upload(self.table[first : first + len(table)], floats)
            offsets = torch.tensor(
                [[slot * REGISTERS], [slot * REGISTERS], *[[slot * self._draws]] * 2, [0]]
            )
            upload(self.indices[:, first : first + len(table)], indices + offsets)
            if noise is not None and len(noise):
                draws = self.noise[slot * self._draws :][: len(noise)]
                upload(draws, noise[:, image].flatten(1))
            self.registers[slot].zero_()  # a coefficient of 0 must not meet what is not finite
            self.registers[slot, START].copy_(start[image], non_blocking=True)
            self.state[slot].copy_(start[image].view(self.shape), non_blocking=True)
            self.cursor[slot].fill_(first)  # to assign it would wait for the device

    def _reserve(self, stages: int, draws: int) -> None:
        """Make room for a plan of that size in every slot. Sizes are powers of two, so that this
        is rare.

        Raises:
            torch.OutOfMemoryError: there is none; nothing has changed.
        """
        if stages <= self._stages and draws <= self._draws:
            return
        slots = self.count + 1
        before, stages = self._stages, max(self._stages, _power_of_two(stages))
        draws_before, draws = self._draws, max(self._draws, _power_of_two(draws))

        def wider(tensor: Tensor, dim: int, old: int, new: int) -> Tensor:
            shape = [*tensor.shape[:dim], slots, old, *tensor.shape[dim + 1 :]]
            parts = tensor.view(shape)
            shape[dim + 1] = new
            room = parts.new_zeros(shape)
            room.narrow(dim + 1, 0, old).copy_(parts)
            return room.flatten(dim, dim + 1)

        slot = torch.arange(slots, device=self.cursor.device)
        table = wider(self.table, 0, before, stages)
        indices = wider(self.indices, 1, before, stages)
        indices[2:4].view(2, slots, stages).add_(slot[:, None] * (draws - draws_before))
        noise = wider(self.noise, 0, draws_before, draws)
        cursor = self.cursor + slot * (stages - before)
        self.table, self.indices, self.noise, self.cursor = table, indices, noise, cursor
        self._stages, self._draws = stages, draws
        self.version += 1


class Tick:
    """Some slots taken one stage further, by a denoiser of so many images.

    `stage` allocates nothing and reads nothing back, so a captured call can be replayed in its
    place.

    Attributes:
        denoised: ``[n, C, h, w]``, the newest results of the denoiser, after `stage`.

    Args:
        slots: the states.
        images: n, how many at a time.
        denoise: the denoiser of n images.
    """

    def __init__(self, slots: Slots, images: int, denoise: SlotDenoise) -> None:
        self._slots = slots
        self._denoise = denoise
        size = slots.registers.shape[-1]
        new = slots.registers.new_zeros
        device = slots.registers.device
        self._places = torch.zeros(2, images, dtype=torch.int64, device=device)
        self._at, self._start_row = self._places.unbind()
        self._taken: tuple[int, ...] | None = None
        self._cursor = torch.zeros_like(self._at)
        self._row = torch.zeros(images, slots.table.shape[1], device=device)
        self._index = torch.zeros(_INDICES, images, dtype=torch.int64, device=device)
        self._x = new(images, *slots.shape)
        self._held = new(images, size)
        self._registers = new(images * REGISTERS * size)
        self._new = new(images, 1, size)
        self._corrected = new(images, 1, size)
        self._drawn = new(images, size)
        self.denoised = self._x

        # Views of the rows are made once, for the operations below.
        width = slots.table.shape[1] - COEFFICIENTS
        parts = [width, REGISTERS, REGISTERS, 1, 1, 1, 1, 1]
        numbers, new_state, corrected, *flags = torch.split(self._row, parts, dim=1)
        self._numbers = numbers
        self._coefficients, self._correction = new_state[:, None], corrected[:, None]
        self._noises = flags[:2]
        self._commits, self._corrects, self._holds = flags[2:]
        self._draws = self._index[2:4]
        self.take(())

    def take(self, slots: Sequence[int]) -> None:
        """Take these slots from now on, n at most."""
        if (*slots,) == self._taken:
            return
        at = [*slots, *[self._slots.count] * (len(self._at) - len(slots))]
        upload(self._places, torch.tensor([at, [slot * REGISTERS + START for slot in at]]))
        self._taken = (*slots,)

    @torch.no_grad()
    def stage(self, features: Features, kind: Hashable = None) -> None:
        """Evaluate the denoiser once, and compute the states that follow.

        Args:
            features: those of the slots' plans together, or more.
            kind: of the evaluation, for the denoiser.
        """
        slots, at = self._slots, self._at
        torch.index_select(slots.cursor, 0, at, out=self._cursor)
        torch.index_select(slots.table, 0, self._cursor, out=self._row)
        torch.index_select(slots.indices, 1, self._cursor, out=self._index)
        x = torch.index_select(slots.state, 0, at, out=self._x)
        self.denoised = self._denoise.denoise(x, self._numbers, kind)

        bank = slots.registers.view(-1, slots.registers.shape[-1])
        bank.index_copy_(0, self._index[0], self._result(features.residual))
        if features.unconditional:
            bank.index_copy_(0, self._index[1], self._denoise.unconditional.flatten(1))

        count = features.registers
        registers = self._registers[: len(at) * count * bank.shape[1]].view(len(at), count, -1)
        torch.index_select(slots.registers[:, :count], 0, at, out=registers)
        start = registers[:, START]
        if features.corrects:
            self._combine(self._correction, registers, features, 1, out=self._corrected)
            # A weight of 0 or 1 leaves the one or the other as it is, exactly.
            torch.lerp(start, self._corrected[:, 0], self._corrects, out=start)
        self._combine(self._coefficients, registers, features, 0, out=self._new)
        state = self._new[:, 0]
        torch.lerp(start, state, self._commits, out=start)

        slots.state.view(len(slots.state), -1).index_copy_(0, at, state)
        bank.index_copy_(0, self._start_row, start)
        slots.cursor.index_copy_(0, at, self._cursor.add_(self._index[4]))

    def _result(self, residual: bool) -> Tensor:
        """What is held of the denoiser's results: D, or x − D."""
        denoised = self.denoised.flatten(1)
        if not residual:
            return denoised
        x = self._x.view_as(denoised)
        torch.sub(x, denoised, out=self._held)
        return torch.lerp(self._held, denoised, self._holds, out=self._held)

    def _combine(
        self, coefficients: Tensor, registers: Tensor, features: Features, draw: int, *, out: Tensor
    ) -> None:
        """The registers and the noise of a draw, with the coefficients of each image."""
        torch.bmm(coefficients[:, :, : registers.shape[1]], registers, out=out)
        if features.noisy:
            torch.index_select(self._slots.noise, 0, self._draws[draw], out=self._drawn)
            torch.addcmul(out[:, 0], self._drawn, self._noises[draw], out=out[:, 0])


def _indices(row: Row) -> list[int]:
    return [row.result, row.unconditional, *row.draws, 1]


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
