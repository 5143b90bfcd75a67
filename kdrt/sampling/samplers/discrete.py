"""DDPM, DDIM and LCM: samplers that were published for discrete, variance-preserving time.

Written for x = x₀ + σ·ε they need no time at all, only σ. ``s`` and ``t`` are the σ at the start
and the end of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft


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
