"""A plan in the making: what the planners share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from kdrt.sampling.plan import Correction, NoiseSlot, Plan, Stage


class Draft:
    """Collects the stages and noise slots of a `Plan`.

    Args:
        sampler: canonical name of the sampler.
        sigmas: the grid, descending.
        residual: see `Plan.residual`.
    """

    def __init__(self, sampler: str, sigmas: Sequence[float], *, residual: bool = False) -> None:
        self._sampler = sampler
        self._sigmas = tuple(float(sigma) for sigma in sigmas)
        self._residual = residual
        self._stages: list[Stage] = []
        self._slots: list[NoiseSlot] = []
        self._initial_noise = 0.0
        self._initial_slot: int | None = None

    def intervals(self) -> Iterator[tuple[float, float]]:
        """The (σ, σ_next) of every step."""
        return pairwise(self._sigmas)

    def initial(self, noise: float, over: tuple[float, float]) -> None:
        """Add noise before the first stage; arguments as for `stage`."""
        self._initial_noise = noise
        self._initial_slot = self._slot(noise, over)

    def stage(
        self,
        sigma: float,
        base: float,
        denoised: Sequence[float],
        *,
        noise: float = 0.0,
        over: tuple[float, float] = (0.0, 0.0),
        ends_step: bool = True,
        unconditional: Sequence[float] = (),
        correction: Correction | None = None,
    ) -> None:
        """Append a stage: the fields of `Stage`, with the noise's interval in place of its slot.

        A slot is made only if the noise is not zero: what is not used is not drawn.
        """
        coefficients = list(denoised)
        while len(coefficients) > 1 and coefficients[-1] == 0:
            coefficients.pop()
        self._stages.append(
            Stage(
                sigma=sigma,
                base=base,
                denoised=tuple(coefficients),
                noise=noise,
                slot=self._slot(noise, over),
                ends_step=ends_step,
                unconditional=tuple(unconditional),
                correction=correction,
            )
        )

    def correction(self, base: float, denoised: Sequence[float]) -> Correction:
        """A correction of the last stage's state, with the noise that stage added."""
        last = self._stages[-1]
        return Correction(base, tuple(denoised), last.noise, last.slot)

    def plan(self) -> Plan:
        """The finished plan."""
        return Plan(
            sampler=self._sampler,
            sigmas=self._sigmas,
            stages=tuple(self._stages),
            slots=tuple(self._slots),
            initial_noise=self._initial_noise,
            initial_slot=self._initial_slot,
            residual=self._residual,
        )

    def _slot(self, noise: float, over: tuple[float, float]) -> int | None:
        if noise == 0:
            return None
        self._slots.append(NoiseSlot(*over))
        return len(self._slots) - 1
