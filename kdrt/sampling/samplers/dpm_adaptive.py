"""DPM adaptive: the sampler that picks its own steps, and the arithmetic of picking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdrt.sampling.plan import NoiseSlot


@dataclass(frozen=True, slots=True)
class AdaptivePlan:
    """A run whose steps depend on the image: it has tolerances instead of a `Plan`'s stages.

    Of the grid, only the highest and the lowest positive σ are used. The other attributes are the
    arguments of `dpm_adaptive`.
    """

    sampler: str
    sigmas: tuple[float, ...]
    order: Literal[2, 3] = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0

    @property
    def steps(self) -> int:
        """Number of steps of the grid; the run takes as many as it needs."""
        return len(self.sigmas) - 1

    @property
    def slots(self) -> tuple[NoiseSlot, ...]:
        """Empty: noise is drawn during the run."""
        return ()

    @property
    def evaluations(self) -> None:
        """None: the number is known only after the run."""
        return

    @property
    def needs_unconditional(self) -> bool:
        """False: it needs only guided results."""
        return False

    @property
    def highest(self) -> float:
        """σ at which the run starts."""
        return self.sigmas[0]

    @property
    def lowest(self) -> float:
        """σ at which it ends."""
        return [sigma for sigma in self.sigmas if sigma > 0][-1]


def dpm_adaptive(
    sigmas: Sequence[float],
    *,
    order: Literal[2, 3] = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> AdaptivePlan:
    """DPM-Solver-12 or -23: steps as long as two methods of neighbouring order agree (Lu et al.
    2022, appendix C).

    As in k-diffusion and the web UI, of the grid only the highest and the lowest positive σ
    count; the run ends at the latter. Every image of a batch is run by itself, so that its
    neighbours never change it. A grid with one positive σ leaves nothing to solve: D is returned.

    Args:
        sigmas: the grid, strictly descending.
        order: of the higher of the two methods; evaluations a try.
        rtol: relative tolerance.
        atol: absolute tolerance; 0.0078 is half a step of 8-bit images.
        h_init: length of the first try, in ln σ.
        pcoeff: proportional coefficient of the step size controller.
        icoeff: integral coefficient.
        dcoeff: derivative coefficient.
        accept_safety: the factor on the length below which a try is rejected.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    return AdaptivePlan(
        sampler="dpm_adaptive",
        sigmas=tuple(sigmas),
        order=order,
        rtol=rtol,
        atol=atol,
        h_init=h_init,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
        eta=eta,
        s_noise=s_noise,
    )


class StepSize:
    """A PID controller of the step's length (Söderlind 2003, "Digital filters in adaptive
    time-stepping"), as k-diffusion tunes it.

    Attributes:
        h: length of the next try, in ln σ.
    """

    def __init__(self, plan: AdaptivePlan) -> None:
        self.h = plan.h_init
        order = 1.5 if plan.eta else plan.order
        p, i, d = plan.pcoeff, plan.icoeff, plan.dcoeff
        self._exponents = ((p + i + d) / order, -(p + 2 * d) / order, d / order)
        self._safety = plan.accept_safety
        self._before: tuple[float, float] | None = None  # 1/error of the two accepted tries before

    def accepts(self, error: float) -> bool:
        """Whether a try with this ``error`` (1 is what the tolerances allow) stands; the next
        length follows from it either way."""
        inverse = 1 / (error + 1e-8)
        if self._before is None:
            self._before = inverse, inverse
        history = (inverse, *self._before)
        wanted = math.prod(e**k for e, k in zip(history, self._exponents, strict=True))
        # Smoothly limited, to between 0.21 and 2.57.
        factor = 1 + math.atan(wanted - 1)
        self.h *= factor
        accepted = factor >= self._safety
        if accepted:
            self._before = history[:2]
        return accepted
