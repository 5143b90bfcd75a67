"""Plans whose coefficients follow k-diffusion's float32 arithmetic where it loses digits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdrt.sampling import AdaptivePlan, NoiseSchedule, Plan, make_plan
from kdrt.sampling.samplers.draft import Draft
from kdrt.sampling.samplers.karras import midpoint_weights


def compat_plan(
    sampler: str, sigmas: Sequence[float], noise_schedule: NoiseSchedule
) -> Plan | AdaptivePlan:
    """The plan of a sampler, as near to k-diffusion's own numbers as float32 latents show.

    k-diffusion computes the σ that an ancestral step goes down to from a difference of squares,
    in float32. Long steps leave hardly a correct digit of it, and two samplers evaluate the
    network at a midpoint that depends on it.

    Raises:
        InvalidRequestError: see :func:`kdrt.sampling.make_plan`.
    """
    planned = make_plan(sampler, sigmas, noise_schedule)
    if planned.sampler not in ("dpm_2_ancestral", "dpmpp_2s_ancestral"):
        return planned
    return _ancestral_midpoint(planned.sampler, planned.sigmas)


def _ancestral_midpoint(sampler: str, sigmas: Sequence[float]) -> Plan:
    draft = Draft(sampler, sigmas)
    for s, t in draft.intervals():
        high, low = torch.tensor(s), torch.tensor(t)
        up = torch.minimum(low, (low**2 * (high**2 - low**2) / high**2) ** 0.5)
        down = float((low**2 - up**2) ** 0.5)
        if down == 0:
            draft.stage(s, 0.0, [1.0], noise=float(up), over=(s, t))
            continue
        m = float(high.log().lerp(torch.tensor(down).log(), 0.5).exp())
        draft.stage(s, m / s, [1 - m / s], ends_step=False)
        in_sigma = sampler == "dpm_2_ancestral"
        weights = midpoint_weights(s, m, down) if in_sigma else [1 - down / s]
        draft.stage(m, down / s, weights, noise=float(up), over=(s, t))
    return draft.plan()
