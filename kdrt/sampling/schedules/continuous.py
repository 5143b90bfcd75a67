"""Schedules that are formulas between two noise levels, whatever the training timesteps.

Every function takes the number of steps and the training table, which gives the range where none
is asked for, and returns the grid: float64, descending. r runs evenly from 0 to 1 over the points.
"""

from __future__ import annotations

import math

import numpy as np

from kdrt.errors import InvalidRequestError
from kdrt.sampling.schedules.quantile import beta_quantile
from kdrt.sampling.schedules.training import Float64Array, NoiseSchedule


def karras(
    steps: int,
    table: NoiseSchedule,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """``(σmax^{1/ρ} + r·(σmin^{1/ρ} - σmax^{1/ρ}))^ρ`` (Karras et al. 2022, equation 5)."""
    low, high = _range(table, sigma_min, sigma_max)
    levels = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
    return _to_zero(_pinned(levels, low, high))


def exponential(
    steps: int,
    table: NoiseSchedule,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """Even in ln σ (k-diffusion)."""
    return polyexponential(steps, table, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    steps: int,
    table: NoiseSchedule,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """``ln σ = ln σmin + (1 - r)^ρ·ln(σmax / σmin)`` (k-diffusion)."""
    low, high = _range(table, sigma_min, sigma_max)
    ramp = np.linspace(1.0, 0.0, steps) ** rho
    levels = np.exp(math.log(low) + ramp * math.log(high / low))
    return _to_zero(_pinned(levels, low, high))


def vp(
    steps: int,
    table: NoiseSchedule,
    *,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    eps_s: float = 1e-3,
) -> Float64Array:
    """``√(exp(β_d t²/2 + β_min t) - 1)`` with t from 1 to ε: the continuous variance-preserving
    process of Song et al. 2021. Its range is its own: σ from 152 to 0.01."""
    t = np.linspace(1.0, eps_s, steps)
    with np.errstate(over="ignore"):  # an infinite σ is refused with the rest of the grid
        return _to_zero(np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)))


def beta_sigma(
    steps: int,
    table: NoiseSchedule,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """``σmin + F⁻¹(1 - r)·(σmax - σmin)``, F the beta distribution's cumulative probability: the
    "Beta" of A1111 and diffusers, which applies the quantiles to σ where the paper (Lee et al.
    2024) applies them to time; see `beta_timestep`."""
    low, high = _range(table, sigma_min, sigma_max)
    quantiles = [beta_quantile(p, alpha, beta) for p in 1 - np.linspace(0.0, 1.0, steps)]
    return _to_zero(_pinned(low + np.array(quantiles) * (high - low), low, high))


def linear_quadratic(
    steps: int,
    table: NoiseSchedule,
    *,
    threshold_noise: float = 0.025,
    linear_steps: int | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """σmax times ``1 - i·θ/m`` for the first m steps, then a parabola that continues it smoothly
    down to 0 (Mochi; ComfyUI). Made for flow models: on Stable Diffusion it keeps σ high.

    ``linear_steps`` (m) is half of the steps by default.
    """
    high = _range(table, None, sigma_max)[1]
    if steps == 1:
        return np.array([high, 0.0])
    linear = steps // 2 if linear_steps is None else linear_steps
    if linear >= steps:
        raise InvalidRequestError(f"linear_steps must be below the {steps} steps, not {linear}")
    quadratic = steps - linear
    i = np.arange(steps + 1, dtype=np.float64)
    slope = threshold_noise / linear
    bend = (linear - threshold_noise * steps) / (linear * quadratic**2)
    done = slope * i + bend * np.maximum(i - linear, 0.0) ** 2
    done[-1] = 1.0
    levels: Float64Array = (1 - done) * high
    return levels


def kl_optimal_comfyui(
    steps: int,
    table: NoiseSchedule,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """``tan(r·atan σmin + (1 - r)·atan σmax)``, then 0 (Sabour et al. 2024; ComfyUI's form)."""
    low, high = _range(table, sigma_min, sigma_max)
    return _to_zero(_pinned(_even_in_arctangent(steps, low, high), low, high))


def kl_optimal_a1111(
    steps: int,
    table: NoiseSchedule,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float64Array:
    """The same formula over one point more, without a 0: A1111 ends the run at σmin."""
    low, high = _range(table, sigma_min, sigma_max)
    return _pinned(_even_in_arctangent(steps + 1, low, high), low, high)


def laplace(
    steps: int,
    table: NoiseSchedule,
    *,
    mu: float = 0.0,
    beta: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final_zero: bool = True,
) -> Float64Array:
    """Even quantiles of a Laplace distribution of ln σ, with centre μ and scale β, cut to the
    range (Hang et al. 2024). Levels that the cut makes equal count once, so many steps give fewer.

    Without ``final_zero`` the run ends at σmin, as ComfyUI's node does; that node counts noise
    levels, so its 20 is 19 steps here.
    """
    low, high = _range(table, sigma_min, sigma_max)
    x = 0.5 - np.linspace(0.0, 1.0, steps if final_zero else steps + 1)
    with np.errstate(over="ignore"):  # the cut takes care of it
        levels = np.exp(mu - beta * np.sign(x) * np.log(1 - 2 * np.abs(x) + 1e-5))
    levels = np.clip(levels, low, high)
    levels = levels[np.append(True, np.diff(levels) < 0)]
    return _to_zero(levels) if final_zero else levels


def _even_in_arctangent(points: int, low: float, high: float) -> Float64Array:
    levels: Float64Array = np.tan(np.linspace(math.atan(high), math.atan(low), points))
    return levels


def _range(
    table: NoiseSchedule, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    low = table.sigma_min if sigma_min is None else float(sigma_min)
    high = table.sigma_max if sigma_max is None else float(sigma_max)
    if not 0 < low < high < math.inf:
        raise InvalidRequestError(
            f"sigma_min must be above 0 and below sigma_max, not {low:g} and {high:g}"
        )
    return low, high


def _pinned(levels: Float64Array, low: float, high: float) -> Float64Array:
    """Powers and exponentials round: pin the ends, so that none leaves the range asked for."""
    if len(levels) > 1:
        levels[-1] = low
    levels[0] = high
    return levels


def _to_zero(levels: Float64Array) -> Float64Array:
    return np.append(levels, 0.0)
