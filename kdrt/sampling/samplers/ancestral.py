"""Ancestral samplers: step down further than the next σ, then add noise back up to it.

After a step from s to t the state has the noise of down² + up² = t², where

    up = min(t, η·t·√(s² - t²)/s)        down = √(t² - up²)

At η = 1 ``up²`` is the variance of the DDPM posterior (Ho et al. 2020) in this scaling; at η = 0
nothing is added and the samplers are deterministic. In the comments D₁ and D₂ are the results of
the first and second evaluation of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.karras import midpoint_weights


def ancestral_split(s: float, t: float, eta: float) -> tuple[float, float]:
    """The σ to step down to and the noise to add: ``(down, up)`` of the module's formula."""
    if eta == 0:
        return t, 0.0
    ratio = t / s
    up = min(t, eta * t * math.sqrt((1 - ratio) * (1 + ratio)))
    return math.sqrt((t - up) * (t + up)), up


def euler_ancestral(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """Euler's method with ancestral noise, first order.

    x' = (down/s)x + (1 - down/s)D + s_noise·up·ξ.

    Args:
        sigmas: the grid, strictly descending.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    draft = Draft("euler_ancestral", sigmas)
    for s, t in draft.intervals():
        down, up = ancestral_split(s, t, eta)
        draft.stage(s, down / s, [1 - down / s], noise=s_noise * up, over=(s, t))
    return draft.plan()


def dpm_2_ancestral(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """Midpoint method in ln σ with ancestral noise, second order at η = 0.

    `dpm_2` from s to ``down``, through m = √(s·down). Where η > 1 is large enough for down = 0
    the step is Euler's; k-diffusion then forgets the noise, this does not. Arguments as for
    `euler_ancestral`.
    """
    draft = Draft("dpm_2_ancestral", sigmas)
    for s, t in draft.intervals():
        down, up = ancestral_split(s, t, eta)
        if down == 0:
            draft.stage(s, 0.0, [1.0], noise=s_noise * up, over=(s, t))
            continue
        m = math.sqrt(s * down)
        draft.stage(s, m / s, [1 - m / s], ends_step=False)
        weights = midpoint_weights(s, m, down)
        draft.stage(m, down / s, weights, noise=s_noise * up, over=(s, t))
    return draft.plan()


def dpmpp_2s_ancestral(sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """DPM-Solver++(2S) with ancestral noise, second order at η = 0 (Lu et al. 2022b).

    An exponential midpoint step from s to ``down``: x₂ at m = √(s·down), then
    x' = (down/s)x + (1 - down/s)D₂ + s_noise·up·ξ. Arguments as for `euler_ancestral`.
    """
    draft = Draft("dpmpp_2s_ancestral", sigmas)
    for s, t in draft.intervals():
        down, up = ancestral_split(s, t, eta)
        if down == 0:
            draft.stage(s, 0.0, [1.0], noise=s_noise * up, over=(s, t))
            continue
        m = math.sqrt(s * down)
        draft.stage(s, m / s, [1 - m / s], ends_step=False)
        draft.stage(m, down / s, [1 - down / s], noise=s_noise * up, over=(s, t))
    return draft.plan()
