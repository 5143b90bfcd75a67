"""Predictor-corrector methods: once the denoiser has seen the predicted state, its result also
corrects that state, at no further evaluation.

A step predicts from the newest results; the next one begins by computing the same step again with
the new result D₀ among them. The last state is not corrected: nothing is evaluated there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from kdrt.sampling.plan import Correction, Plan
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.integrals import exponential_weights, past_nodes, sde_noise


def unipc(
    sigmas: Sequence[float],
    *,
    order: Literal[1, 2, 3] = 3,
    solver_type: Literal["bh1", "bh2"] = "bh1",
) -> Plan:
    """UniPC on denoised images: order p of the predictor, p + 1 with its corrector.

    Predicted x' = e⁻ʰx + Σⱼ wⱼDⱼ from p results, corrected with the result at x' as one more (Zhao
    et al. 2023, "UniPC"). The paper's coefficients ρ solve R·ρ = b; where it solves for all of
    them B(h) cancels and w are the exact weights of the interpolating polynomial. With a single
    difference of results it sets ρ = 1/2 instead, and B(h) remains: h (``bh1``) or 1 - e⁻ʰ
    (``bh2``). Below 15 steps the last ones are of lower order.

    Args:
        sigmas: the grid, strictly descending.
        order: p, the number of results that predict.
        solver_type: B(h) of the steps with two results.
    """
    draft = Draft("unipc", sigmas)
    past: list[float] = []  # h of the steps before, newest first
    correction: Correction | None = None
    for p, (s, t) in zip(_orders(order, len(sigmas) - 1), draft.intervals(), strict=True):
        if t == 0:
            draft.stage(s, 0.0, [1.0], correction=correction)
            break
        h = math.log(s / t)
        nodes = past_nodes(h, past)[:p]
        predicted = _unipc_weights(h, nodes, solver_type)
        draft.stage(s, t / s, predicted, correction=correction)
        # The result to come lies at 1, the step's end.
        *known, new = _unipc_weights(h, [*nodes, 1.0], solver_type)
        correction = draft.correction(t / s, [new, *known])
        past = [h, *past][: order - 1]
    return draft.plan()


def _orders(order: int, steps: int) -> list[int]:
    """How many results predict each step, where there are as many.

    A run of few steps has long ones in ln σ, and polynomials overshoot: as in the authors' code it
    ends with lower orders. From 15 steps on, the usual bound, that would only cost accuracy.
    """
    if steps >= 15:
        return [order] * steps
    return [min(order, steps - step) for step in range(steps)]


def _unipc_weights(h: float, nodes: Sequence[float], solver_type: str) -> list[float]:
    if len(nodes) != 2:
        return exponential_weights(h, nodes)
    gain = -math.expm1(-h)
    slope = (h if solver_type == "bh1" else gain) / 2 / nodes[1]
    return [gain - slope, slope]


def sa_solver(
    sigmas: Sequence[float],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.56,
    s_tmax: float = 5.1,
    order: Literal[1, 2, 3] = 3,
) -> Plan:
    """SA-Solver: stochastic Adams methods, Bashforth's to predict and Moulton's to correct.

    x' = e^(-hₑ)x + Σⱼ wⱼDⱼ + s_noise·t·√(1 - e^(-2τ²h))·ξ with hₑ = (1 + τ²)h; the correction uses
    the same draw (Xue et al. 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of
    Diffusion Models"). τ is ``eta`` in steps that start within [s_tmin, s_tmax], else 0. The
    default bounds are Stable Diffusion's σ at 20 and 80 % of its timesteps.

    Args:
        sigmas: the grid, strictly descending.
        eta: τ, the strength of the noise; 0 for none.
        s_noise: factor on the noise.
        s_tmin: lowest σ at which a step adds noise.
        s_tmax: highest such σ.
        order: the number of results that predict; one more corrects.
    """
    draft = Draft("sa_solver", sigmas)
    past: list[float] = []
    correction: Correction | None = None
    for p, (s, t) in zip(_orders(order, len(sigmas) - 1), draft.intervals(), strict=True):
        if t == 0:
            draft.stage(s, 0.0, [1.0], correction=correction)
            break
        h = math.log(s / t)
        strength = eta**2 if s_tmin <= s <= s_tmax else 0.0
        h_eta = (1 + strength) * h
        base = math.exp(-h_eta)
        nodes = past_nodes(h, past)[:p]
        noise = s_noise * sde_noise(t, h, strength)
        predicted = exponential_weights(h_eta, nodes)
        draft.stage(s, base, predicted, noise=noise, over=(s, t), correction=correction)
        *known, new = exponential_weights(h_eta, [*nodes, 1.0])
        correction = draft.correction(base, [new, *known])
        past = [h, *past][: order - 1]
    return draft.plan()
