"""SEEDS: exponential Runge-Kutta methods for the SDE, with noise in every stage.

Gonzalez et al. 2023, "SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion
Models". A stage at share c of a step from s has

    x_c = e^(-c·hₑ)·x + Σⱼ wⱼ·Dⱼ + s_noise·m·√(1 - e^(-2ηch))·ξ_c,    m = s·e^(-ch), hₑ = (1 + η)h

and the noise of all stages comes from one Brownian path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.integrals import exponential_weights, sde_noise


def seeds_2(
    sigmas: Sequence[float],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    solver_type: Literal["phi_1", "phi_2"] = "phi_1",
) -> Plan:
    """SEEDS-2: second order with two evaluations a step.

    D₂ is evaluated at share r. ``phi_1`` ends the step with the constant
    D' = (1 - 1/2r)D₁ + (1/2r)D₂, ``phi_2`` with the line through D₁ and D₂.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
        r: where in ln σ the second evaluation lies, in (0, 1].
        solver_type: ``phi_1`` or ``phi_2``.
    """
    return _seeds_2("seeds_2", sigmas, eta, s_noise, r, solver_type)


def exp_heun_2_x0(sigmas: Sequence[float], *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Exponential Heun: second order with two evaluations a step, the second at its end.

    x' = e^(-hₑ)x + the exact integral of the line through D₁ and D₂: `seeds_2` with r = 1 and
    ``phi_2``, without noise by default (Hochbruck & Ostermann 2010, "Exponential integrators").

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
    """
    return _seeds_2("exp_heun_2_x0", sigmas, eta, s_noise, 1.0, "phi_2")


def seeds_3(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """SEEDS-3: third order with three evaluations a step, at its start, at 1/3 and at 2/3.

    The second stage's state uses D₁, the third's the line through D₁ and D₂, and the end the line
    through D₁ and D₃.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
    """
    draft = Draft("seeds_3", sigmas)
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        step = _Step(draft, s, t, eta, s_noise)
        d_1, d_3 = exponential_weights(step.h_eta, [0.0, 2 / 3])
        step.stage(0.0, 1 / 3, exponential_weights(step.h_eta / 3, [0.0]))
        step.stage(1 / 3, 2 / 3, exponential_weights(step.h_eta * 2 / 3, [1 / 2, 0.0]))
        step.stage(2 / 3, 1.0, [d_3, 0.0, d_1])
    return draft.plan()


def _seeds_2(
    name: str, sigmas: Sequence[float], eta: float, s_noise: float, r: float, solver_type: str
) -> Plan:
    draft = Draft(name, sigmas)
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        step = _Step(draft, s, t, eta, s_noise)
        step.stage(0.0, r, exponential_weights(step.h_eta * r, [0.0]))
        if solver_type == "phi_2":
            weights = exponential_weights(step.h_eta, [r, 0.0])
        else:
            gain = -math.expm1(-step.h_eta)
            weights = [gain / (2 * r), gain * (1 - 1 / (2 * r))]
        step.stage(r, 1.0, weights)
    return draft.plan()


class _Step:
    """Appends the stages of one step from s to t."""

    def __init__(self, draft: Draft, s: float, t: float, eta: float, s_noise: float) -> None:
        self._draft = draft
        self._s, self._t = s, t
        self._eta, self._s_noise = eta, s_noise
        self._h = math.log(s / t)
        self.h_eta = (1 + eta) * self._h

    def stage(self, at: float, to: float, denoised: Sequence[float]) -> None:
        """Evaluate at share ``at`` of the step, and go from its start to share ``to``."""
        h = to * self._h
        end = self._t if to == 1 else self._s * math.exp(-h)
        self._draft.stage(
            self._s * math.exp(-at * self._h) if at < 1 else self._t,
            math.exp(-to * self.h_eta),
            denoised,
            noise=self._s_noise * sde_noise(end, h, self._eta),
            over=(self._s, self._drawn_to(to)),
            ends_step=to == 1 and at > 0,
        )

    def _drawn_to(self, to: float) -> float:
        """The end of the interval whose increment is the noise of the stage to share ``to``.

        The noise of the SDE is a Brownian motion in σ^(-2η): of two stages, the first share ρ of
        the second's variance is common. A `NoiseSlot` counts time in σ, so it gets the same share
        of the step: the joint law is the same, and stays within the step.
        """
        if to == 1 or self._eta == 0:
            return self._t
        growth = 2 * self._eta * self._h
        # (e^(growth·to) - 1)/(e^growth - 1), without overflow for strong noise.
        rho = math.exp(growth * (to - 1)) * math.expm1(-growth * to) / math.expm1(-growth)
        return self._s - rho * (self._s - self._t)
