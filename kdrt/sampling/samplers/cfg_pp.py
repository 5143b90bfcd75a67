"""CFG++ samplers: guidance says where to go, the unconditional result which noise was there.

Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models". A
step takes the image from D, guided, but the noise to keep from U, the result without guidance:
ε = (x - U)/s in place of (x - D)/s. Guidance then works at scales of 0 to about 1.5, a twelfth
of the usual ones. Where U = D these are the samplers without the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.ancestral import ancestral_split
from kdrt.sampling.samplers.draft import Draft


def euler_cfg_pp(sigmas: Sequence[float]) -> Plan:
    """Euler's method (DDIM) with CFG++, first order: x' = D + t·(x - U)/s.

    Args:
        sigmas: the grid, strictly descending.
    """
    draft = Draft("euler_cfg_pp", sigmas)
    for s, t in draft.intervals():
        _step(draft, s, t)
    return draft.plan()


def euler_ancestral_cfg_pp(
    sigmas: Sequence[float], *, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Euler ancestral with CFG++: x' = D + down·(x - U)/s + s_noise·up·ξ.

    Args:
        sigmas: the grid, strictly descending.
        eta: share of the noise that is fresh, 0 for none (deterministic).
        s_noise: factor on the noise.
    """
    draft = Draft("euler_ancestral_cfg_pp", sigmas)
    for s, t in draft.intervals():
        down, up = ancestral_split(s, t, eta)
        _step(draft, s, t, down=down, noise=s_noise * up)
    return draft.plan()


def dpmpp_2m_cfg_pp(sigmas: Sequence[float]) -> Plan:
    """DPM-Solver++(2M) with CFG++.

    x' = D₁ + (t/s)(x - U₁) + (1 - t/s)·q·(D₁ - U₂), q = h/(2·h of the step before); q = 0 on the
    first step and on a step to 0. The trend runs from the unguided result before to the guided one
    now, as the noise that the step before kept was unguided.

    Args:
        sigmas: the grid, strictly descending.
    """
    draft = Draft("dpmpp_2m_cfg_pp", sigmas)
    h_last: float | None = None
    for s, t in draft.intervals():
        if t == 0 or h_last is None:
            _step(draft, s, t)
        else:
            trend = (1 - t / s) * math.log(s / t) / (2 * h_last)
            draft.stage(s, t / s, [1 + trend], unconditional=[-t / s, -trend])
        h_last = math.log(s / t) if t > 0 else None
    return draft.plan()


def _step(
    draft: Draft, s: float, t: float, *, down: float | None = None, noise: float = 0.0
) -> None:
    """D + down·(x - U)/s + noise·ξ; to 0 it is D, for which U need not be read."""
    kept = (t if down is None else down) / s
    unconditional = [-kept] if kept else []
    draft.stage(s, kept, [1.0], noise=noise, over=(s, t), unconditional=unconditional)
