"""Multistep methods: one evaluation a step, and polynomials through the results of earlier steps.

``s`` and ``t`` are the σ at the start and the end of a step, h = ln(s/t) its length in λ = -ln σ.
The first steps use the results there are; a step to σ = 0 returns D₁.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.ancestral import ancestral_split
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.integrals import exponential_weights, past_nodes, sde_noise


def dpmpp_3m_sde_exact(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """DPM-Solver++(3M) SDE with the weights its name promises: third order.

    x' = e^(-hₑ)x + Σⱼ wⱼDⱼ + s_noise·t·√(1 - e^(-2ηh))·ξ, hₑ = (1 + η)h, where w integrates the
    parabola through the last three results exactly (the exponential Adams-Bashforth method; Lu et
    al. 2022b, section 5, for the SDE). `dpmpp_3m_sde` halves the curvature.

    Args:
        sigmas: the grid, strictly descending.
        eta: strength of the noise, 0 for none.
        s_noise: factor on the noise.
    """
    draft = Draft("dpmpp_3m_sde_exact", sigmas)
    past: list[float] = []  # h of the steps before, newest first
    for s, t in draft.intervals():
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            break
        h = math.log(s / t)
        h_eta = (1 + eta) * h
        weights = exponential_weights(h_eta, past_nodes(h, past))
        noise = s_noise * sde_noise(t, h, eta)
        draft.stage(s, math.exp(-h_eta), weights, noise=noise, over=(s, t))
        past = [h, *past[:1]]
    return draft.plan()


def res_multistep(sigmas: Sequence[float], *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """RES, refined exponential solver, as a two-step method: second order at η = 0.

    An exponential Adams-Bashforth step from s to ``down`` (Zhang et al. 2023, "Improved Order
    Analysis and Design of Exponential Integrator for Diffusion Models Sampling"), then ancestral
    noise. The line through D₁ and D₂ takes them for as far apart as the step before was long,
    which with noise is the way to *its* ``down``: ComfyUI's rule, which costs accuracy at η > 0.

    Args:
        sigmas: the grid, strictly descending.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    draft = Draft("res_multistep", sigmas)
    past: list[float] = []
    for s, t in draft.intervals():
        down, up = ancestral_split(s, t, eta)
        if down == 0:
            draft.stage(s, 0.0, [1.0], noise=s_noise * up, over=(s, t))
            past = []
            continue
        h = math.log(s / down)
        weights = exponential_weights(h, past_nodes(h, past))
        draft.stage(s, down / s, weights, noise=s_noise * up, over=(s, t))
        past = [h]
    return draft.plan()


def deis(sigmas: Sequence[float], *, order: Literal[1, 2, 3, 4] = 3) -> Plan:
    """DEIS, the diffusion exponential integrator sampler, on polynomials in ln σ.

    x' = x + ∫ₛᵗ ε(σ) dσ, where ε is the polynomial in ln σ through the newest
    εⱼ = (xⱼ - Dⱼ)/σⱼ (Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential
    Integrator", the logρ variant of tAB-DEIS). With σ = s·e^(-hτ) the integral is that of a growing
    exponential against a polynomial, and exact: x' = x + t·Σⱼ wⱼ(-h)·εⱼ.

    Args:
        sigmas: the grid, strictly descending.
        order: number of results.
    """
    draft = Draft("deis", sigmas, residual=True)
    past: list[float] = []
    for step, (s, t) in enumerate(draft.intervals()):
        if t == 0:
            draft.stage(s, 1.0, [-1.0])
            break
        h = math.log(s / t)
        weights = exponential_weights(-h, past_nodes(h, past))
        draft.stage(s, 1.0, [t * w / sigmas[step - j] for j, w in enumerate(weights)])
        past = [h, *past][: order - 1]
    return draft.plan()


_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(sigmas: Sequence[float], *, order: Literal[1, 2, 3, 4] = 4) -> Plan:
    """Improved PNDM: x' = x + (t - s)·Σⱼ bⱼ·εⱼ with the weights of Adams and Bashforth for equal
    steps (Liu et al. 2022, "Pseudo Numerical Methods"; Zhang & Chen 2022, i-PNDM).

    The weights stay the same on a grid of unequal steps in σ, as all grids in use are: second
    order where neighbouring steps tend to equal length, first order else. `lms` is this method
    with the weights that belong to the grid.

    Args:
        sigmas: the grid, strictly descending.
        order: number of results.
    """
    draft = Draft("ipndm", sigmas, residual=True)
    for step, (s, t) in enumerate(draft.intervals()):
        if t == 0:
            draft.stage(s, 1.0, [-1.0])
            break
        weights = _ADAMS_BASHFORTH[min(step + 1, order) - 1]
        draft.stage(s, 1.0, [(t - s) * w / sigmas[step - j] for j, w in enumerate(weights)])
    return draft.plan()
