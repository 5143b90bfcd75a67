"""DDPM, DDIM, LCM and TCD: samplers that were published for discrete, variance-preserving time.

Written for x = x₀ + σ·ε they need no time at all, only σ; TCD alone asks the training table. ``s``
and ``t`` are the σ at the start and the end of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.options import Share
from kdrt.sampling.schedules.training import NoiseSchedule

_ROUNDING = 1e-6
"""By how much a timestep may fall short of a whole number that it was meant to be."""


def ddpm(sigmas: Sequence[float], *, s_noise: float = 1.0) -> Plan:
    """Ancestral sampling of the posterior q(x_t | x_s, x₀ = D) (Ho et al. 2020, equation 7).

    x' = (t/s)²x + (1 - (t/s)²)D + s_noise·t·√(1 - (t/s)²)·ξ. The same as `euler_ancestral`.

    Args:
        sigmas: the grid, strictly descending.
        s_noise: factor on the noise.
    """
    draft = Draft("ddpm", sigmas)
    for s, t in draft.intervals():
        kept = (t / s) ** 2
        noise = s_noise * t * math.sqrt(1 - kept)
        draft.stage(s, kept, [1 - kept], noise=noise, over=(s, t))
    return draft.plan()


def ddim(sigmas: Sequence[float], *, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Denoising diffusion implicit model (Song et al. 2021, equations 12 and 16).

    x' = D + √(t² - up²)·(x - D)/s + s_noise·up·ξ, with the paper's σ_η, which at unit scale is
    up = η·t·√(1 - (t/s)²). η = 0 is `euler` without churn, η = 1 is `ddpm`.

    Args:
        sigmas: the grid, strictly descending.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    draft = Draft("ddim", sigmas)
    for s, t in draft.intervals():
        up = min(t, eta * t * math.sqrt(1 - (t / s) ** 2))
        down = math.sqrt((t - up) * (t + up))
        draft.stage(s, down / s, [1 - down / s], noise=s_noise * up, over=(s, t))
    return draft.plan()


def lcm(sigmas: Sequence[float], *, s_noise: float = 1.0) -> Plan:
    """Multistep consistency sampling: x' = D + s_noise·t·ξ (Luo et al. 2023, "Latent Consistency
    Models", algorithm 3).

    For models distilled to jump to the image in one evaluation. With any other, D is an average
    of images, and so is the result.

    Args:
        sigmas: the grid, strictly descending.
        s_noise: factor on the noise.
    """
    draft = Draft("lcm", sigmas)
    for s, t in draft.intervals():
        draft.stage(s, 0.0, [1.0], noise=s_noise * t, over=(s, t))
    return draft.plan()


def tcd(
    sigmas: Sequence[float], table: NoiseSchedule, *, eta: Share = 0.3, s_noise: float = 1.0
) -> Plan:
    """Trajectory consistency sampling, the paper's γ-sampling (Zheng et al. 2024,
    arXiv:2402.19159, algorithm 4): past the step's end without noise, and back up to it with.

    x' = D + (r/s)(x - D) + s_noise·√(t² - r²)·ξ, r the noise level of the timestep
    ⌊(1 - η)·timestep of t⌋, rounded down as in the authors' code. η = 0 is `euler` without churn;
    η = 1 begins every step with fresh noise, like `lcm`.

    For models distilled to jump along the trajectory (TCD, Hyper-SD). With any other the share of
    fresh noise does not become less with more steps, so the result does not converge.

    Args:
        sigmas: the grid, strictly descending.
        table: the model's training table, since η is a share of its timesteps.
        eta: η, the paper's γ, from 0 (deterministic) to 1.
        s_noise: factor on the noise.
    """
    draft = Draft("tcd", sigmas)
    for s, t in draft.intervals():
        down = t
        if eta > 0 and t > 0:
            timestep = math.floor((1 - eta) * table.index(t) + _ROUNDING)
            down = min(t, table.level(timestep))
        up = math.sqrt((t - down) * (t + down))
        draft.stage(s, down / s, [1 - down / s], noise=s_noise * up, over=(s, t))
    return draft.plan()
