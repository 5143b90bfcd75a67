"""Noise levels: the table a checkpoint was trained on, and the grids sampling walks down.

σ is the standard deviation of the noise in ``x = x₀ + σ·ξ`` (variance exploding, the scaling of
Karras et al. 2022). Everything here is float64 on the host: a grid is a few dozen numbers, made
once per request, and never needs a device.
"""

from __future__ import annotations

import math

import numpy as np

from kdrt.errors import InvalidRequest
from kdrt.sampling.schedules.partial import partial_grid
from kdrt.sampling.schedules.training import Float64Array, NoiseSchedule

__all__ = ["SCHEDULES", "NoiseSchedule", "partial_grid", "sigmas_for"]

SCHEDULES = ("karras", "exponential", "polyexponential", "vp", "scheduler")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")

_DEFAULT_RHO = {"karras": 7.0, "polyexponential": 1.0}
_RANGED = ("karras", "exponential", "polyexponential")


def sigmas_for(
    schedule: str,
    steps: int,
    noise_schedule: NoiseSchedule,
    *,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
    rho: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """The descending noise levels of a run of ``steps`` steps: float64 ``[steps + 1]``, last 0.

    Schedules, with r running evenly over the ``steps`` points:

    - ``karras``: ``(σmax^{1/ρ} + r·(σmin^{1/ρ} - σmax^{1/ρ}))^ρ``, ρ = 7 (Karras et al. 2022,
      equation 5).
    - ``exponential``: even in ln σ.
    - ``polyexponential``: ``ln σ = ln σmin + r^ρ·ln(σmax / σmin)`` with r from 1 to 0, ρ = 1.
    - ``vp``: ``√(exp(β_d t²/2 + β_min t) - 1)``, the continuous variance-preserving process of
      Song et al. 2021 (β_d 19.9, β_min 0.1, t from 1 to 1e-3). It has a range of its own, σ from
      152 to 0.01, wider than what Stable Diffusion was trained on.
    - ``scheduler``: the checkpoint's own grid, its training σ at evenly spaced timesteps.

    Args:
        schedule: one of `SCHEDULES`.
        steps: number of steps; for ``scheduler`` at most the number of training timesteps.
        noise_schedule: the training table; gives the default range.
        timestep_spacing: for ``scheduler``: ``linspace`` (both ends of the table), ``leading``
            (multiples of N // steps) or ``trailing`` (counted down from the top). As diffusers,
            but for two slips of its: one step of ``linspace`` starts at the top, not at timestep
            0, and ``trailing`` has no step too many where N / steps is rounded (61, 103, …).
        steps_offset: added to every ``leading`` timestep.
        rho: for ``karras`` and ``polyexponential``.
        sigma_min: lowest positive σ, for all but ``vp`` and ``scheduler``; None is the table's.
        sigma_max: highest σ, likewise.

    Raises:
        InvalidRequest: an unknown name, an impossible number of steps, or a parameter that is
            out of range or has no meaning for this schedule.
    """
    _check_names(schedule, timestep_spacing)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidRequest(f"steps must be a whole number of at least 1, not {steps!r}")
    if schedule not in _RANGED and (sigma_min is not None or sigma_max is not None):
        raise InvalidRequest(
            f"the {schedule} schedule has a range of its own; sigma_min and sigma_max apply to "
            f"{', '.join(_RANGED)}"
        )
    if rho is not None and schedule not in _DEFAULT_RHO:
        raise InvalidRequest(
            f"the {schedule} schedule has no rho; it applies to {', '.join(_DEFAULT_RHO)}"
        )
    if schedule == "scheduler":
        levels = _scheduler_levels(steps, noise_schedule, timestep_spacing, steps_offset)
    elif schedule == "vp":
        t = np.linspace(1.0, 1e-3, steps)
        levels = np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
    else:
        low = noise_schedule.sigma_min if sigma_min is None else float(sigma_min)
        high = noise_schedule.sigma_max if sigma_max is None else float(sigma_max)
        if not 0 < low < high < math.inf:
            raise InvalidRequest(
                f"sigma_min must be above 0 and below sigma_max, not {low:g} and {high:g}"
            )
        levels = _ranged_levels(schedule, steps, low, high, rho)
    return np.append(levels, 0.0)


def _check_names(schedule: str, timestep_spacing: str) -> None:
    if schedule not in SCHEDULES:
        raise InvalidRequest(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if timestep_spacing not in TIMESTEP_SPACINGS:
        raise InvalidRequest(
            f"unknown timestep spacing {timestep_spacing!r}; known: {', '.join(TIMESTEP_SPACINGS)}"
        )


def _ranged_levels(
    schedule: str, steps: int, low: float, high: float, rho: float | None
) -> Float64Array:
    """The schedules that interpolate between two noise levels: float64 ``[steps]``."""
    power = _DEFAULT_RHO.get(schedule, 1.0) if rho is None else float(rho)
    if not 0 < power < math.inf:
        raise InvalidRequest(f"rho must be a finite number above 0, not {power:g}")
    if schedule == "karras":
        levels = np.linspace(high ** (1 / power), low ** (1 / power), steps) ** power
    else:
        ramp = np.linspace(1.0, 0.0, steps) ** power
        levels = np.exp(math.log(low) + ramp * math.log(high / low))
    # Powers and exponentials round: pin the ends, so that none leaves the range asked for.
    if steps > 1:
        levels[-1] = low
    levels[0] = high
    return levels


def _scheduler_levels(
    steps: int, noise_schedule: NoiseSchedule, spacing: str, offset: int
) -> Float64Array:
    """Training σ at evenly spaced timesteps, as diffusers' ``set_timesteps``: float64 [steps]."""
    count = len(noise_schedule.sigmas)
    if steps > count:
        raise InvalidRequest(
            f"steps must be at most {count}, the number of training timesteps, for the scheduler "
            f"schedule, not {steps}"
        )
    if spacing == "linspace":
        timesteps = np.linspace(count - 1, 0, steps)
    elif spacing == "leading":
        timesteps = np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + offset
        if not 0 <= timesteps[-1] <= timesteps[0] <= count - 1:
            raise InvalidRequest(
                f"leading spacing of {steps} steps with steps_offset {offset} leaves the "
                f"{count} training timesteps; ask for fewer steps or a steps_offset nearer 0"
            )
    else:
        # A rounded stride can leave room for one element more: keep as many as asked for.
        timesteps = np.round(np.arange(count, 0, -count / steps)[:steps]) - 1
    return np.interp(timesteps, np.arange(count), noise_schedule.sigmas)
