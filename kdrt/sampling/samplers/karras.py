"""Samplers that integrate dx/dσ = (x - D)/σ: Euler, Heun, DPM2 (Karras et al. 2022) and LMS.

In the comments s and t are the σ at the start and the end of a step, D₁ and D₂ the results of its
first and second evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft


class _Churn:
    """Karras et al. 2022, algorithm 2, lines 4 to 6: raise σ by noise before a step.

    σ̂ = (1 + γ)·σ with γ = min(s_churn / steps, √2 - 1) where s_tmin ≤ σ ≤ s_tmax, else 0. The
    noise that lifts a state from σ to σ̂ has the standard deviation s_noise·√(σ̂² - σ²); the paper
    inflates it a little to make up for what the network removes too much.
    """

    def __init__(
        self, sigmas: Sequence[float], s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> None:
        starts = sigmas[:-1]
        gamma = min(s_churn / len(starts), math.sqrt(2) - 1)
        gammas = [gamma if s_tmin <= sigma <= s_tmax else 0.0 for sigma in starts]
        self.raised = [sigma * (1 + g) for sigma, g in zip(starts, gammas, strict=True)]
        self._noise = [
            s_noise * sigma * math.sqrt(g * (2 + g))
            for sigma, g in zip(starts, gammas, strict=True)
        ]
        self._sigmas = sigmas

    def start(self, draft: Draft) -> None:
        """Put the noise of the first step before the first stage."""
        draft.initial(self._noise[0], self._independent(0))

    def finish_step(
        self, draft: Draft, step: int, sigma: float, base: float, denoised: Sequence[float]
    ) -> None:
        """Append the last stage of ``step``, with the noise that the next step begins with."""
        following = step + 1
        if following == len(self._noise):
            draft.stage(sigma, base, denoised)
            return
        over = self._independent(following)
        draft.stage(sigma, base, denoised, noise=self._noise[following], over=over)

    def _independent(self, step: int) -> tuple[float, float]:
        # Raised levels may reach back over the interval of the step before, yet the paper's
        # noise is fresh every time: an empty interval says so.
        return self._sigmas[step], self._sigmas[step]


def euler(
    sigmas: Sequence[float],
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Plan:
    """Euler's method, first order: x' = x + (t - s)(x - D)/s (Karras et al. 2022, algorithm 2).

    Args:
        sigmas: the grid, strictly descending.
        s_churn: total amount of fresh noise over the run, 0 for none (deterministic).
        s_tmin: lowest σ at which noise is added.
        s_tmax: highest such σ.
        s_noise: factor on the noise.
    """
    draft = Draft("euler", sigmas)
    churn = _Churn(sigmas, s_churn, s_tmin, s_tmax, s_noise)
    churn.start(draft)
    for step, (_, t) in enumerate(draft.intervals()):
        s = churn.raised[step]
        churn.finish_step(draft, step, s, t / s, [1 - t / s])
    return draft.plan()


def heun(
    sigmas: Sequence[float],
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Plan:
    """Heun's method, second order (Karras et al. 2022, algorithm 2); arguments as for `euler`.

    An Euler step to x₂, then x' = x + (t - s)/2 · [(x - D₁)/s + (x₂ - D₂)/t]. Substituting x₂
    leaves only x, D₁ and D₂. The slope is infinite at t = 0: that step is Euler's.
    """
    draft = Draft("heun", sigmas)
    churn = _Churn(sigmas, s_churn, s_tmin, s_tmax, s_noise)
    churn.start(draft)
    for step, (_, t) in enumerate(draft.intervals()):
        s = churn.raised[step]
        if t == 0:
            churn.finish_step(draft, step, s, 0.0, [1.0])
            continue
        draft.stage(s, t / s, [1 - t / s], ends_step=False)
        half = (s - t) / 2
        churn.finish_step(draft, step, t, t / s, [half / t, half * (2 / s - 1 / t)])
    return draft.plan()


def dpm_2(
    sigmas: Sequence[float],
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Plan:
    """Midpoint method in ln σ, second order (DPM-Solver-2, Lu et al. 2022, on Karras' ODE).

    An Euler step to m = √(s·t), then x' = x + (t - s)(x₂ - D₂)/m. Arguments as for `euler`.
    """
    draft = Draft("dpm_2", sigmas)
    churn = _Churn(sigmas, s_churn, s_tmin, s_tmax, s_noise)
    churn.start(draft)
    for step, (_, t) in enumerate(draft.intervals()):
        s = churn.raised[step]
        if t == 0:
            churn.finish_step(draft, step, s, 0.0, [1.0])
            continue
        m = math.sqrt(s * t)
        draft.stage(s, m / s, [1 - m / s], ends_step=False)
        churn.finish_step(draft, step, m, t / s, midpoint_weights(s, m, t))
    return draft.plan()


def midpoint_weights(s: float, m: float, t: float) -> list[float]:
    """Weights of D₂ and D₁ in x + (t - s)(x₂ - D₂)/m, where x₂ = (m/s)x + (1 - m/s)D₁."""
    return [(s - t) / m, (t - s) / m * (1 - m / s)]


def lms(sigmas: Sequence[float], *, order: Literal[1, 2, 3, 4] = 4) -> Plan:
    """Linear multistep (Adams-Bashforth on an uneven grid) in σ, order 1 to 4.

    x' = x + Σⱼ cⱼ·dⱼ, where dⱼ = (xⱼ - Dⱼ)/σⱼ are the newest slopes and cⱼ the integral over the
    step of the Lagrange polynomial that is 1 at σⱼ and 0 at the other nodes. The first steps use
    the slopes there are. The slopes remember past states, so this is a `Plan.residual` plan.

    Args:
        sigmas: the grid, strictly descending.
        order: number of slopes.
    """
    draft = Draft("lms", sigmas, residual=True)
    for step, (s, t) in enumerate(draft.intervals()):
        nodes = [float(sigmas[step - back]) for back in range(min(step + 1, order))]
        weights = _lagrange_integrals(nodes, s, t)
        draft.stage(s, 1.0, [w / node for w, node in zip(weights, nodes, strict=True)])
    return draft.plan()


def _lagrange_integrals(nodes: Sequence[float], lower: float, upper: float) -> list[float]:
    """∫ of every Lagrange basis polynomial over [lower, upper] (signed)."""
    half = (upper - lower) / 2
    # Two-point Gauss-Legendre quadrature, weights 1 and 1, is exact up to degree 3: four nodes.
    points = [lower + half * (1 + x) for x in (-1 / math.sqrt(3), 1 / math.sqrt(3))]
    integrals = []
    for j, node in enumerate(nodes):
        others = [other for k, other in enumerate(nodes) if k != j]
        values = [math.prod((x - other) / (node - other) for other in others) for x in points]
        integrals.append(half * sum(values))
    return integrals
