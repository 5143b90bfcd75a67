"""The noise levels that a checkpoint was trained on: σ against timestep."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdrt.errors import InvalidRequestError

Float64Array = NDArray[np.float64]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The discrete noise schedule of training, as σ against timestep.

    Attributes:
        sigmas: float64 ``[N]``, ascending; entry ``t`` is ``√((1 - ᾱ_t) / ᾱ_t)``. Read-only.
        log_sigmas: its natural logarithm, float64 ``[N]``. Read-only.

    Raises:
        InvalidRequestError: the table has fewer than two entries, or is not finite, positive and
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
            raise InvalidRequestError(
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
        *,
        rescale_zero_snr: bool = False,
    ) -> Self:
        """Build the table from a diffusers scheduler configuration.

        Args:
            beta_start: β of the first timestep (``squaredcos_cap_v2`` does not use it).
            beta_end: β of the last timestep (likewise).
            beta_schedule: ``linear`` in β, ``scaled_linear`` (linear in √β; Stable Diffusion and
                SDXL), or ``squaredcos_cap_v2`` (ᾱ a squared cosine, β capped at 0.999; Nichol and
                Dhariwal 2021).
            num_train_timesteps: N, the number of entries.
            trained_betas: explicit β, which replace all of the above.
            rescale_zero_snr: shift and scale √ᾱ so that the last timestep holds only noise and the
                first stays as it is (Lin et al. 2023, algorithm 1). Its σ would be infinite; like
                diffusers, kdrt uses ᾱ = 2⁻²⁴ there, which is σ = 4096. At that level, only a model
                that predicts velocity can say anything about an image.

        Raises:
            InvalidRequestError: ``beta_schedule`` is unknown, or betas are outside (0, 1).
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
            raise InvalidRequestError(
                f"unknown beta schedule {beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}"
            )
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise InvalidRequestError("every beta must lie strictly between 0 and 1")
        if rescale_zero_snr:
            return cls(_zero_snr_sigmas(betas))
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
        return self.index(sigma)

    def index(self, sigma: float) -> float:
        """The place of ``sigma`` between the entries of the table: inverse of `level`."""
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
        return self.level(timestep)

    def level(self, index: float) -> float:
        """The σ between two entries of the table, linear in ln σ, clamped to [0, N - 1]."""
        table = self._log_table
        clamped = min(max(index, 0.0), len(table) - 1.0)
        low = min(int(clamped), len(table) - 2)
        fraction = clamped - low
        return math.exp((1.0 - fraction) * table[low] + fraction * table[low + 1])


@cache
def stable_diffusion_table() -> NoiseSchedule:
    """The table of Stable Diffusion and SDXL, for callers that have no model at hand."""
    return NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")


class ContinuousSchedule(NoiseSchedule):
    """Training on a range of σ instead of a list. The network is told ``ln(σ) / 4`` (c_noise of
    Karras et al. 2022, table 1). `sigmas` is a table of that range, for schedules that need one."""

    @classmethod
    def from_range(cls, sigma_min: float, sigma_max: float, count: int = 1000) -> Self:
        """``count`` levels from σmin to σmax, even in ln σ (ComfyUI's ModelSamplingContinuousEDM).

        Raises:
            InvalidRequestError: the range is not positive, finite and ascending.
        """
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InvalidRequestError(
                f"sigma_min must be above 0 and below sigma_max, not {sigma_min:g} and "
                f"{sigma_max:g}"
            )
        levels = np.exp(np.linspace(math.log(sigma_min), math.log(sigma_max), count))
        levels[[0, -1]] = sigma_min, sigma_max
        return cls(levels)

    def timestep(self, sigma: float) -> float:
        """``ln(σ) / 4``, also outside of the range; 0, which has no logarithm, counts as σmin."""
        return math.log(sigma if sigma > 0 else self.sigma_min) / 4

    def sigma(self, timestep: float) -> float:
        """``exp(4·timestep)``: inverse of `timestep`."""
        return math.exp(4 * timestep)


def _zero_snr_sigmas(betas: Float64Array) -> Float64Array:
    root = np.exp(np.cumsum(np.log1p(-betas)) / 2)
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * first / (first - last)) ** 2
    alpha_bar[-1] = 2.0**-24
    sigmas: Float64Array = np.sqrt((1 - alpha_bar) / alpha_bar)
    return sigmas


def _squared_cosine_betas(count: int) -> Float64Array:
    """β from ratios of ᾱ(t) = cos²(π/2 · (t + 0.008) / 1.008), capped at 0.999."""
    t = np.linspace(0.0, 1.0, count + 1)
    alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Float64Array = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas
