"""Noise levels: the table a checkpoint was trained on, and the grids sampling walks down.

σ is the standard deviation of the noise in ``x = x₀ + σ·ξ`` (variance exploding, the scaling of
Karras et al. 2022). Everything here is float64 on the host: a grid is a few dozen numbers, made
once per request, and never needs a device.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdrt.errors import InvalidRequest

Float64Array = NDArray[np.float64]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SCHEDULES = ("karras", "exponential", "polyexponential", "vp", "scheduler")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")

_DEFAULT_RHO = {"karras": 7.0, "polyexponential": 1.0}
_RANGED = ("karras", "exponential", "polyexponential")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The discrete schedule of training, as σ against timestep.

    Attributes:
        sigmas: float64 ``[N]``, ascending; entry ``t`` is ``√((1 - ᾱ_t) / ᾱ_t)``. Read-only.
        log_sigmas: its natural logarithm, float64 ``[N]``. Read-only.

    Raises:
        InvalidRequest: the table has fewer than two entries, or is not finite, positive and
            strictly ascending (betas of 1, as zero-terminal-SNR rescaling makes them, end in an
            infinite σ).
    """

    sigmas: Float64Array
    log_sigmas: Float64Array = field(init=False)
    _log_table: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sigmas = np.array(self.sigmas, dtype=np.float64)
        usable = sigmas.ndim == 1 and len(sigmas) >= 2 and bool(np.isfinite(sigmas).all())
        if not usable or sigmas[0] <= 0 or bool((np.diff(sigmas) <= 0).any()):
            raise InvalidRequest(
                "the training sigmas must be at least two finite, positive, strictly ascending "
                "numbers; check the checkpoint's betas"
            )
        logs = np.log(sigmas)
        sigmas.flags.writeable = False
        logs.flags.writeable = False
        object.__setattr__(self, "sigmas", sigmas)
        object.__setattr__(self, "log_sigmas", logs)
        # Bisecting a list takes under a microsecond; one numpy scalar lookup costs more.
        object.__setattr__(self, "_log_table", logs.tolist())

    @classmethod
    def from_betas(
        cls,
        beta_start: float,
        beta_end: float,
        beta_schedule: str,
        num_train_timesteps: int = 1000,
        trained_betas: Sequence[float] | None = None,
    ) -> NoiseSchedule:
        """Build the table from a diffusers scheduler configuration.

        Args:
            beta_start: β of the first timestep (``squaredcos_cap_v2`` does not use it).
            beta_end: β of the last timestep (likewise).
            beta_schedule: ``linear`` in β, ``scaled_linear`` (linear in √β; Stable Diffusion and
                SDXL), or ``squaredcos_cap_v2`` (ᾱ a squared cosine, β capped at 0.999; Nichol and
                Dhariwal 2021).
            num_train_timesteps: N, the number of entries.
            trained_betas: explicit β, which replace all of the above.

        Raises:
            InvalidRequest: an unknown ``beta_schedule``, or betas outside (0, 1).
        """
        if trained_betas is not None:
            betas = np.asarray(trained_betas, dtype=np.float64)
        elif beta_schedule == "linear":
            betas = np.linspace(beta_start, beta_end, num_train_timesteps)
        elif beta_schedule == "scaled_linear":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        elif beta_schedule == "squaredcos_cap_v2":
            betas = _squared_cosine_betas(num_train_timesteps)
        else:
            raise InvalidRequest(
                f"unknown beta schedule {beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}"
            )
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise InvalidRequest("every beta must lie strictly between 0 and 1")
        # (1 - ᾱ)/ᾱ = exp(-Σ ln(1 - β)) - 1: no cancellation where ᾱ is close to 1.
        return cls(np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas)))))

    @property
    def sigma_min(self) -> float:
        """σ of timestep 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """σ of timestep N - 1."""
        return float(self.sigmas[-1])

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of ``sigma``: linear in ln σ, clamped to [0, N - 1]."""
        table = self._log_table
        if sigma <= 0:
            return 0.0
        log_sigma = math.log(sigma)
        high = bisect_right(table, log_sigma)
        if high == 0:
            return 0.0
        if high == len(table):
            return float(high - 1)
        low = high - 1
        return low + (log_sigma - table[low]) / (table[high] - table[low])

    def sigma(self, timestep: float) -> float:
        """The σ of a fractional ``timestep``, clamped to [0, N - 1]: inverse of `timestep`."""
        table = self._log_table
        clamped = min(max(timestep, 0.0), len(table) - 1.0)
        low = min(int(clamped), len(table) - 2)
        fraction = clamped - low
        return math.exp((1.0 - fraction) * table[low] + fraction * table[low + 1])


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


def _squared_cosine_betas(count: int) -> Float64Array:
    """β from ratios of ᾱ(t) = cos²(π/2 · (t + 0.008) / 1.008), capped at 0.999."""
    t = np.linspace(0.0, 1.0, count + 1)
    alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Float64Array = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas
