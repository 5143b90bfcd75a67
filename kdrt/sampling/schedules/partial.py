"""Part of a grid: where image to image begins, and where one model hands over to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdrt.common.validation import excerpt, finite_or_none
from kdrt.errors import InvalidRequestError
from kdrt.sampling.schedules.training import Float64Array, NoiseSchedule

_SAME = 1e-9
"""Two σ this near, relatively, are one: a step between them would be rounding error."""


def partial_grid(
    sigmas: Sequence[float] | Float64Array,
    noise_schedule: NoiseSchedule,
    *,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> Float64Array:
    """The part of a grid that is to be run.

    ``strength`` keeps the last ``min(int(n·strength), n)`` of n steps, as the image-to-image
    pipelines of diffusers do. The run starts from an image with noise of the σ where it begins.

    ``denoising_start`` and ``denoising_end`` are fractions of the training timesteps, counted
    from the noisy end. (SDXL's ensemble of experts uses them: one model runs to ``denoising_end``,
    and the next takes over at the same ``denoising_start``.) Fraction f stands for the σ of
    timestep ``round(N - f·N)``. That σ becomes a point of the grid, so two models meet exactly
    there, whatever the schedule and the number of steps of each. (diffusers cuts between points:
    its models meet only if both use the same grid.)

    Args:
        sigmas: N + 1 noise levels, strictly descending.
        noise_schedule: the training table, for the fractions.
        strength: above 0 and at most 1; 1 keeps everything.
        denoising_start: between 0 and 1; excludes ``strength``.
        denoising_end: between 0 and 1, above ``denoising_start``.

    Returns:
        The noise levels of the part: float64, at least two.

    Raises:
        InvalidRequestError: a value is out of range, or no step is left to run.
    """
    grid = np.asarray(sigmas, dtype=np.float64)
    if strength is not None and denoising_start is not None:
        raise InvalidRequestError("strength and denoising_start both say where to begin; give one")
    if strength is not None:
        grid = _last_steps(grid, strength)
    start = _cut("denoising_start", denoising_start, noise_schedule)
    end = _cut("denoising_end", denoising_end, noise_schedule)
    if start is not None and end is not None and start <= end:
        raise InvalidRequestError(
            f"denoising_end must be above denoising_start, by a timestep at least, not "
            f"{denoising_end} after {denoising_start}"
        )
    if start is not None:
        grid = np.concatenate([[start], grid[grid < start * (1 - _SAME)]])
        if len(grid) < 2:
            raise InvalidRequestError(
                f"denoising_start {denoising_start} is sigma {start:g}, and this grid has nothing "
                "below that"
            )
    if end is not None:
        if grid[-1] > end * (1 + _SAME):
            raise InvalidRequestError(
                f"denoising_end {denoising_end} is sigma {end:g}, but this grid ends before, at "
                f"{grid[-1]:g}"
            )
        grid = np.concatenate([grid[grid > end * (1 + _SAME)], [end]])
        if len(grid) < 2:
            raise InvalidRequestError(
                f"denoising_end {denoising_end} is sigma {end:g}, and this grid begins no higher"
            )
    return grid


def _last_steps(grid: Float64Array, strength: float) -> Float64Array:
    number = finite_or_none(strength)
    if number is None or not 0 < number <= 1:
        raise InvalidRequestError(
            f"strength must be above 0 and at most 1, not {excerpt(strength)}"
        )
    steps = len(grid) - 1
    kept = min(int(steps * number), steps)
    if kept == 0:
        raise InvalidRequestError(
            f"strength {strength} of {steps} steps leaves none; ask for at least "
            f"{-(-1 // number):.0f} steps, or for more strength"
        )
    return grid[steps - kept :]


def _cut(name: str, fraction: float | None, noise_schedule: NoiseSchedule) -> float | None:
    """The σ at which a fraction of the training timesteps is done."""
    if fraction is None:
        return None
    number = finite_or_none(fraction)
    if number is None or not 0 < number < 1:
        raise InvalidRequestError(
            f"{name} must be between 0 and 1, not {excerpt(fraction)}; leave it out for a whole run"
        )
    count = len(noise_schedule.sigmas)
    timestep = round(count - number * count)
    return float(noise_schedule.sigmas[min(timestep, count - 1)])
