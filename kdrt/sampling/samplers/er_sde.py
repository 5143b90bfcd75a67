"""ER-SDE solvers: extended reverse-time SDEs, whose noise a function of σ shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def er_sde(
    sigmas: Sequence[float],
    *,
    s_noise: float = 1.0,
    order: Literal[1, 2, 3] = 3,
    solver_type: Literal["er_sde", "reverse_sde", "ode"] = "er_sde",
) -> Plan:
    """Extended reverse-time SDE solver (Cui et al. 2023, "Elucidating the Solution Space of
    Extended Reverse-Time SDE for Diffusion Models", the VE solvers of section 4).

    For a noise scale φ(σ) that grows at least like σ,

        x' = r·x + (1 - r)D + c₁·D' + c₂·D'' + s_noise·√(t² - s²r²)·ξ,   r = φ(t)/φ(s)
        c₁ = (t - s) + φ(t)·∫ₜˢ dσ/φ(σ)     c₂ = (t - s)²/2 + φ(t)·∫ₜˢ (σ - s)/φ(σ) dσ

    where D' and D'' are divided differences in σ of the newest results.

    Args:
        sigmas: the grid, strictly descending.
        s_noise: factor on the noise.
        order: number of results; one less is the degree of the polynomial through them.
        solver_type: φ: the paper's best, σ(e^(σ^0.3) + 10); σ², the usual reverse SDE; or σ, the
            probability flow, which is deterministic.
    """
    phi = _NOISE_SCALES[solver_type]
    draft = Draft("er_sde", sigmas)
    for step, (s, t) in enumerate(draft.intervals()):
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        r = phi(t) / phi(s)
        weights = [1 - r, 0.0, 0.0]
        past = [s, *reversed(sigmas[:step])][:order]
        if len(past) > 1:
            c_1 = (t - s) + phi(t) * _integral(lambda u: 1 / phi(u), t, s)
            slope = _slope(past[0], past[1])
            weights[0] += c_1 * slope
            weights[1] -= c_1 * slope
        if len(past) > 2:
            c_2 = (t - s) ** 2 / 2 + phi(t) * _integral(lambda u: (u - s) / phi(u), t, s)  # noqa: B023
            bend = 2 / (past[0] - past[2]) * c_2
            before = _slope(past[1], past[2])
            weights[0] += bend * slope
            weights[1] -= bend * (slope + before)
            weights[2] += bend * before
        noise = 0.0
        if solver_type != "ode":
            noise = s_noise * math.sqrt(max(0.0, (t - s * r) * (t + s * r)))
        draft.stage(s, r, weights, noise=noise, over=(s, t))
    return draft.plan()


_NOISE_SCALES: dict[str, Callable[[float], float]] = {
    "er_sde": lambda sigma: sigma * (math.exp(sigma**0.3) + 10),
    "reverse_sde": lambda sigma: sigma * sigma,
    "ode": lambda sigma: sigma,
}


def _slope(upper: float, lower: float) -> float:
    return 1 / (upper - lower)


def _integral(function: Callable[[float], float], lower: float, upper: float) -> float:
    """∫ by Gauss-Legendre quadrature in ln σ, where these integrands are smooth."""
    half = math.log(upper / lower) / 2
    places = [lower * math.exp(half * (1 + node)) for node in _NODES]
    values = [place * function(place) for place in places]
    return half * float(np.dot(_WEIGHTS, values))
