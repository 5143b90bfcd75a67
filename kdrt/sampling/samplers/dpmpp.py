"""DPM-Solver++ and its stochastic forms (Lu et al. 2022b): exponential integrators in λ = -ln σ.

The linear part is solved exactly: over h = ln(s/t) the state keeps e⁻ʰ = t/s of itself and D
brings the rest. The SDE forms add noise of variance t²·(1 - e^(-2ηh)) a step and forget faster,
with hₑ = (1 + η)·h in place of h. D₁ and D₂ in the comments are the newest result and the one
before it, unless the text says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.ancestral import ancestral_split
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.integrals import sde_noise


def dpmpp_2m(sigmas: Sequence[float]) -> Plan:
    """DPM-Solver++(2M): second order with one evaluation a step.

    x' = (t/s)x + (1 - t/s)[D₁ + q(D₁ - D₂)], q = h/(2·h of the step before); q = 0 on the first
    step and on a step to 0, which returns D₁.

    Args:
        sigmas: the grid, strictly descending.
    """
    draft = Draft("dpmpp_2m", sigmas)
    h_last: float | None = None
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        h = math.log(s / t)
        q = 0.0 if h_last is None else h / (2 * h_last)
        gain = -math.expm1(-h)
        draft.stage(s, t / s, [gain * (1 + q), -gain * q])
        h_last = h
    return draft.plan()


def dpmpp_2m_sde(
    sigmas: Sequence[float],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
) -> Plan:
    """DPM-Solver++(2M) SDE: second order with one evaluation a step.

    x' = (t/s)e^(-ηh)·x + (1 - e^(-hₑ))D₁ + k(D₁ - D₂) + s_noise·t·√(1 - e^(-2ηh))·ξ, with
    k = (h/h_last)·½(1 - e^(-hₑ)) for ``midpoint`` and (h/h_last)·φ₂(hₑ) for ``heun``.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none (``midpoint`` is then `dpmpp_2m`).
        s_noise: factor on the noise.
        solver_type: ``midpoint`` or ``heun``.
    """
    draft = Draft("dpmpp_2m_sde", sigmas)
    h_last: float | None = None
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        h = math.log(s / t)
        h_eta = (1 + eta) * h
        gain = -math.expm1(-h_eta)
        k = 0.0
        if h_last is not None:
            k = h / h_last * (_phi_2(h_eta) if solver_type == "heun" else gain / 2)
        noise = s_noise * sde_noise(t, h, eta)
        draft.stage(s, math.exp(-h_eta), [gain + k, -k], noise=noise, over=(s, t))
        h_last = h
    return draft.plan()


def dpmpp_3m_sde(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """DPM-Solver++(3M) SDE as k-diffusion has it: second order, in spite of its name.

    x' = e^(-hₑ)x + (1 - e^(-hₑ))D₁ + φ₂·d₁ - φ₃·d₂ + s_noise·t·√(1 - e^(-2ηh))·ξ, where d₁ and
    d₂ are the first and second differences of the last three D, scaled by h. d₂ tends to
    h²D''/2, so that third order would take 2·φ₃·d₂. The formula is kept: images are made with it.
    The second step has two results only and uses φ₂·(D₁ - D₂)·h/h_last.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
    """
    draft = Draft("dpmpp_3m_sde", sigmas)
    past: list[float] = []  # h of the steps before, newest first
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        h = math.log(s / t)
        h_eta = (1 + eta) * h
        weights = [-math.expm1(-h_eta), 0.0, 0.0]
        for index, correction in enumerate(_third_order_correction(h, h_eta, past)):
            weights[index] += correction
        noise = s_noise * sde_noise(t, h, eta)
        draft.stage(s, math.exp(-h_eta), weights, noise=noise, over=(s, t))
        past = [h, *past[:1]]
    return draft.plan()


def dpmpp_sde(
    sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Plan:
    """DPM-Solver++ SDE: second order with two evaluations a step.

    A noisy step to m = s·(t/s)^r, evaluated there to D₂; then a step from the same start to t
    with D' = (1 - 1/2r)D₁ + (1/2r)D₂, where D₁ is the first result of the step. Both are
    ancestral splits. The two draws belong to overlapping intervals, (s, m) and (s, t): drawing
    them independently costs an order of accuracy in the variance.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
        r: where in ln σ the second evaluation lies, in (0, 1].
    """
    draft = Draft("dpmpp_sde", sigmas)
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        m = s * (t / s) ** r
        down, up = ancestral_split(s, m, eta)
        first = [1 - down / s]
        draft.stage(s, down / s, first, noise=s_noise * up, over=(s, m), ends_step=False)
        down, up = ancestral_split(s, t, eta)
        gain = 1 - down / s
        weights = [gain / (2 * r), gain * (1 - 1 / (2 * r))]
        draft.stage(m, down / s, weights, noise=s_noise * up, over=(s, t))
    return draft.plan()


def _third_order_correction(h: float, h_eta: float, past: Sequence[float]) -> list[float]:
    """Weights of D₁, D₂, D₃ in φ₂·d₁ - φ₃·d₂, given the h of up to two earlier steps."""
    phi_2 = _phi_2(h_eta)
    if not past:
        return []
    if len(past) == 1:
        return [phi_2 * h / past[0], -phi_2 * h / past[0]]
    r_0, r_1 = past[0] / h, past[1] / h
    # With u = (D₁ - D₂)/r₀ and v = (D₂ - D₃)/r₁:
    # d₁ = u + (u - v)·r₀/(r₀ + r₁) and d₂ = (u - v)/(r₀ + r₁).
    phi_3 = phi_2 / h_eta - 0.5
    bend = (phi_2 * r_0 - phi_3) / (r_0 + r_1)
    u, v = phi_2 + bend, -bend
    return [u / r_0, v / r_1 - u / r_0, -v / r_1]


def _phi_2(h: float) -> float:
    """1 - (1 - e⁻ʰ)/h, the weight of a linear trend of D over the step."""
    return 1 + math.expm1(-h) / h
