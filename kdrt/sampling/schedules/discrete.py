"""Schedules that choose training timesteps, and take their noise levels from the table.

Every function takes the number of steps and the training table of N timesteps, and returns the
grid: float64, descending to 0.
"""

from __future__ import annotations

import numpy as np

from kdrt.errors import InvalidRequestError
from kdrt.sampling.schedules.quantile import beta_quantile
from kdrt.sampling.schedules.training import Float64Array, NoiseSchedule

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")


def normal(steps: int, table: NoiseSchedule) -> Float64Array:
    """Evenly spaced, both ends of the table included, ln σ interpolated (k-diffusion's
    ``get_sigmas``; A1111 lists it as "Uniform" too)."""
    return _at(np.linspace(len(table.sigmas) - 1, 0, steps), table)


def sgm_uniform(steps: int, table: NoiseSchedule) -> Float64Array:
    """Like `normal` with a step more whose last point is left out: 0 takes its place, so that
    the last step is as long as the others (Stability's generative models)."""
    return _at(np.linspace(len(table.sigmas) - 1, 0, steps + 1)[:-1], table)


def simple(steps: int, table: NoiseSchedule) -> Float64Array:
    """Every (N / steps)-th entry of the table, counted down from the top (ComfyUI)."""
    count = _at_most_one_each("simple", steps, table)
    return _entries([count - 1 - int(i * count / steps) for i in range(steps)], table)


def ddim_uniform(steps: int, table: NoiseSchedule) -> Float64Array:
    """Every (N // steps)-th entry from the second up, as the first DDIM code did. The stride is
    rounded down, so there are more steps than asked for where N is no multiple (7 gives 8)."""
    count = _at_most_one_each("ddim_uniform", steps, table)
    return _entries(list(range(1, count, count // steps))[::-1], table)


def beta_timestep(
    steps: int, table: NoiseSchedule, *, alpha: float = 0.6, beta: float = 0.6
) -> Float64Array:
    """Quantiles of a beta distribution as timesteps: more of them at both ends (Lee et al. 2024;
    ComfyUI's "beta"). Timesteps are rounded, and those that become equal count once."""
    last = len(table.sigmas) - 1
    probabilities = 1 - np.linspace(0.0, 1.0, steps, endpoint=False)
    timesteps = [round(beta_quantile(p, alpha, beta) * last) for p in probabilities]
    return _entries(list(dict.fromkeys(timesteps)), table)


def sd_turbo(steps: int, table: NoiseSchedule) -> Float64Array:
    """The first of ten entries spaced like `trailing`: those that SD Turbo was distilled for
    (ComfyUI's "SDTurboScheduler"). At most ten steps."""
    if steps > 10:
        raise InvalidRequestError(
            f"sd_turbo has ten noise levels, so at most 10 steps, not {steps}"
        )
    count = len(table.sigmas)
    return _entries([round(count * (10 - i) / 10) - 1 for i in range(steps)], table)


def consistency(steps: int, table: NoiseSchedule, *, original_steps: int = 50) -> Float64Array:
    """Spread over the ``original_steps`` entries, even from the top, that consistency models were
    distilled at (diffusers' LCMScheduler and TCDScheduler). At most so many steps."""
    count = len(table.sigmas)
    if original_steps > count:
        raise InvalidRequestError(
            f"original_steps must be at most {count}, the number of training timesteps, not "
            f"{original_steps}"
        )
    if steps > original_steps:
        raise InvalidRequestError(
            f"steps must be at most {original_steps}, the original_steps of the consistency "
            f"schedule, not {steps}"
        )
    stride = count // original_steps
    chosen = [original_steps - i * original_steps // steps for i in range(steps)]
    return _entries([index * stride - 1 for index in chosen], table)


def scheduler(
    steps: int,
    table: NoiseSchedule,
    *,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
    exact_diffusers: bool = False,
) -> Float64Array:
    """The checkpoint's own grid: `linspace`, `leading` or `trailing`, as its scheduler file says
    (``set_timesteps`` of the diffusers schedulers)."""
    if timestep_spacing == "linspace":
        return linspace(steps, table, exact_diffusers=exact_diffusers)
    if timestep_spacing == "leading":
        return leading(steps, table, steps_offset=steps_offset)
    return trailing(steps, table, exact_diffusers=exact_diffusers)


def linspace(steps: int, table: NoiseSchedule, *, exact_diffusers: bool = False) -> Float64Array:
    """Evenly spaced, both ends of the table included; σ interpolated, not its logarithm.

    One step starts at the top; with ``exact_diffusers`` at timestep 0, as there.
    """
    count = _at_most_one_each("linspace", steps, table)
    timesteps = np.linspace(count - 1, 0, steps)
    if steps == 1 and exact_diffusers:
        timesteps[0] = 0.0
    return _interpolated(timesteps, table)


def leading(steps: int, table: NoiseSchedule, *, steps_offset: int = 0) -> Float64Array:
    """Multiples of N // steps, plus an offset."""
    count = _at_most_one_each("leading", steps, table)
    timesteps = np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + steps_offset
    if not 0 <= timesteps[-1] <= timesteps[0] <= count - 1:
        raise InvalidRequestError(
            f"leading spacing of {steps} steps with steps_offset {steps_offset} leaves the "
            f"{count} training timesteps; ask for fewer steps or a steps_offset nearer 0"
        )
    return _interpolated(timesteps, table)


def trailing(steps: int, table: NoiseSchedule, *, exact_diffusers: bool = False) -> Float64Array:
    """Counted down from the top in strides of N / steps, rounded.

    A rounded stride can leave room for one point more (61 steps, 103, …): with
    ``exact_diffusers`` it is kept, as there.
    """
    count = _at_most_one_each("trailing", steps, table)
    points = np.arange(count, 0, -count / steps)
    timesteps = np.round(points if exact_diffusers else points[:steps]) - 1
    return _interpolated(np.maximum(timesteps, 0), table)


def _at_most_one_each(name: str, steps: int, table: NoiseSchedule) -> int:
    """N, after making sure that there are no more steps than that."""
    count = len(table.sigmas)
    if steps > count:
        raise InvalidRequestError(
            f"steps must be at most {count}, the number of training timesteps, for the {name} "
            f"schedule, not {steps}"
        )
    return count


def _at(timesteps: Float64Array, table: NoiseSchedule) -> Float64Array:
    return np.array([*map(table.level, timesteps.tolist()), 0.0])


def _interpolated(timesteps: Float64Array, table: NoiseSchedule) -> Float64Array:
    return np.append(np.interp(timesteps, np.arange(len(table.sigmas)), table.sigmas), 0.0)


def _entries(timesteps: list[int], table: NoiseSchedule) -> Float64Array:
    return np.append(table.sigmas[timesteps], 0.0)
