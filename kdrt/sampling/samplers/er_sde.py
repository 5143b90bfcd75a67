"""ER-SDE solvers: extended reverse-time SDEs, whose noise a function of σ shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft

_D1, _D2, _D3 = np.eye(3)
"""The results, newest first, as coefficient vectors: formulas are computed on these."""


@cache
def _quadrature() -> tuple[Any, Any]:
    """Nodes and weights. Made when first needed: that takes longer than importing all samplers."""
    return np.polynomial.legendre.leggauss(24)


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

    where D' = [D₁ - D₂] and D'' = 2·[[D₁ - D₂] - [D₂ - D₃]] are divided differences in σ. As in the
    paper D' stands for the slope at s, although it is that half a step earlier: so the order of
    convergence is 2 even with three results.

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
        past = sigmas[max(0, step - order + 1) : step][::-1]
        state = (1 - r) * _D1
        if len(past) > 0:
            slope = (_D1 - _D2) / (s - past[0])
            state = state + slope * ((t - s) + phi(t) * _integral(lambda u: 1 / phi(u), t, s))
        if len(past) > 1:
            before = (_D2 - _D3) / (past[0] - past[1])
            bend = 2 * (slope - before) / (s - past[1])
            first = _integral(lambda u: u / phi(u), t, s) - s * _integral(
                lambda u: 1 / phi(u), t, s
            )
            state = state + bend * ((t - s) ** 2 / 2 + phi(t) * first)
        noise = 0.0
        if solver_type != "ode":
            noise = s_noise * math.sqrt(max(0.0, (t - s * r) * (t + s * r)))
        draft.stage(s, r, state.tolist(), noise=noise, over=(s, t))
    return draft.plan()


_NOISE_SCALES: dict[str, Callable[[float], float]] = {
    "er_sde": lambda sigma: sigma * (math.exp(sigma**0.3) + 10),
    "reverse_sde": lambda sigma: sigma * sigma,
    "ode": lambda sigma: sigma,
}


def _integral(function: Callable[[float], float], lower: float, upper: float) -> float:
    """∫ by Gauss-Legendre quadrature in ln σ, where these integrands are smooth."""
    half = math.log(upper / lower) / 2
    nodes, weights = _quadrature()
    places = [lower * math.exp(half * (1 + node)) for node in nodes]
    values = [place * function(place) for place in places]
    return half * float(np.dot(weights, values))
