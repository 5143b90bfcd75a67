"""DPM-Solver's singlestep methods of order 1, 2 and 3 (Lu et al. 2022, algorithms 1 and 2), and
dpm_fast, which strings them together.

With ε = (x - D)/σ and λ = -ln σ, a step of length h = ln(s/t) from s is

    1:  x' = x - t·(eʰ - 1)·ε₁
    2:  x' = x - t·(eʰ - 1)·[ε₁ + (ε₂ - ε₁)/2r₁]                        ε₂ at share r₁ of the step
    3:  x' = x - t·(eʰ - 1)·ε₁ - (t/r₂)·((eʰ - 1)/h - 1)·(ε₃ - ε₁)      ε₃ at share r₂, by way of ε₂

The state is linear in x and the D of the step, so the formulas are computed on coefficient
vectors: x is (1, 0, 0, 0), D₁ is (0, 1, 0, 0) and so on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft

Coefficients = npt.NDArray[np.float64]
"""Of a state: what multiplies the start of the step, D₁, D₂ and D₃."""

_X, _D1, _D2, _D3 = np.eye(4)


def first_order(s: float, t: float) -> list[tuple[float, Coefficients]]:
    """The σ of every evaluation of a step from s to t, each with the state computed after it."""
    return [(s, _X - t * math.expm1(math.log(s / t)) * (_X - _D1) / s)]


def second_order(s: float, t: float, r: float = 1 / 2) -> list[tuple[float, Coefficients]]:
    """Likewise, with the second evaluation at share ``r``."""
    h = math.log(s / t)
    m = s * math.exp(-r * h)
    eps_1 = (_X - _D1) / s
    u = _X - m * math.expm1(r * h) * eps_1
    eps_2 = (u - _D2) / m
    end = _X - t * math.expm1(h) * (eps_1 + (eps_2 - eps_1) / (2 * r))
    return [(s, u), (m, end)]


def third_order(s: float, t: float) -> list[tuple[float, Coefficients]]:
    """Likewise, with the evaluations at 0, 1/3 and 2/3."""
    r_1, r_2 = 1 / 3, 2 / 3
    h = math.log(s / t)
    m_1, m_2 = s * math.exp(-r_1 * h), s * math.exp(-r_2 * h)
    eps_1 = (_X - _D1) / s
    u_1 = _X - m_1 * math.expm1(r_1 * h) * eps_1
    eps_2 = (u_1 - _D2) / m_1
    bend = math.expm1(r_2 * h) / (r_2 * h) - 1
    u_2 = _X - m_2 * (math.expm1(r_2 * h) * eps_1 + r_2 / r_1 * bend * (eps_2 - eps_1))
    eps_3 = (u_2 - _D3) / m_2
    end = _X - t * (math.expm1(h) * eps_1 + (math.expm1(h) / h - 1) / r_2 * (eps_3 - eps_1))
    return [(s, u_1), (m_1, u_2), (m_2, end)]


_STEPS = {1: first_order, 2: second_order, 3: third_order}


def ancestral_end(s: float, t: float, lowest: float, eta: float) -> tuple[float, float]:
    """Where a step from s to t with ancestral noise goes, and the noise that follows; it never
    goes below ``lowest``, the end of the run."""
    if eta == 0:
        return t, 0.0
    up = min(t, eta * t * math.sqrt((1 - t / s) * (1 + t / s)))
    down = max(lowest, math.sqrt((t - up) * (t + up)))
    return down, math.sqrt(max(0.0, (t - down) * (t + down)))


def dpm_fast(sigmas: Sequence[float], *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """DPM-Solver-fast: N evaluations, spent on third-order steps as far as they go.

    As in k-diffusion and the web UI, of the grid only its highest σ, its lowest positive one and
    the number of its steps N count: in between the method takes ⌊N/3⌋ + 1 steps, even in ln σ, of
    third order but for the last one or two. It ends at the lowest positive σ, where hardly any
    noise is left, not at 0. A grid with one positive σ leaves nothing to solve: D is returned.

    Args:
        sigmas: the grid, strictly descending.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    highest, lowest = sigmas[0], [sigma for sigma in sigmas if sigma > 0][-1]
    evaluations = len(sigmas) - 1
    if lowest == highest:
        draft = Draft("dpm_fast", sigmas)
        draft.stage(highest, 0.0, [1.0])
        return draft.plan()
    thirds, rest = divmod(evaluations, 3)
    orders = [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1]
    shares = [step / len(orders) for step in range(1, len(orders))]
    grid = [highest, *(highest * (lowest / highest) ** share for share in shares), lowest]
    draft = Draft("dpm_fast", grid)
    for order, (s, t) in zip(orders, draft.intervals(), strict=True):
        down, up = ancestral_end(s, t, lowest, eta)
        *inner, (sigma, end) = _STEPS[order](s, down)
        for evaluated, state in inner:
            draft.stage(evaluated, *_newest_first(state), ends_step=False)
        draft.stage(sigma, *_newest_first(end), noise=s_noise * up, over=(s, t))
    return draft.plan()


def _newest_first(state: Coefficients) -> tuple[float, list[float]]:
    """The coefficient of x, and those of the results there are so far, newest first."""
    base, *denoised = state.tolist()
    while denoised[-1] == 0:
        denoised.pop()
    return base, denoised[::-1]
