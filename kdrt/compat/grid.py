"""The σ grids of the removed pipelines, bit by bit.

They ran on diffusers' LMSDiscreteScheduler, whatever scheduler a checkpoint names, which computes
in a certain order of float32 and float64. Elsewhere in kdrt a grid is float64 throughout; here the
last bit matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrt.bundle import SchedulerFacts
from kdrt.compat.absent import SaysWhatThereIs
from kdrt.errors import InvalidRequestError
from kdrt.sampling import NoiseSchedule

_RHO = 7.0
_MIN_ALPHA = 2.0**-24
_BETA_SHAPE = 0.6
"""Both parameters of the beta distribution in "Beta Sampling is All You Need" (2407.12173)."""


@dataclass(frozen=True, eq=False)
class TrainingTable(SaysWhatThereIs):
    """σ of every training timestep, in float32 as k-diffusion's denoisers hold them.

    Attributes:
        alphas_cumprod: float32 ``[N]``, descending.
        sigmas: float32 ``[N]``, ascending.
        log_sigmas: its logarithm.
    """

    instead = (
        "it has sigmas and log_sigmas; what denoises is inside of a call of the pipeline, and a "
        "sampler of your own goes to pipe.pipeline(…, sampler=function)"
    )

    alphas_cumprod: Tensor
    sigmas: Tensor
    log_sigmas: Tensor

    @classmethod
    def from_facts(cls, facts: SchedulerFacts, *, zero_snr: bool = False) -> TrainingTable:
        """The table of a checkpoint. The removed pipelines ignored ``rescale_betas_zero_snr``;
        with ``zero_snr`` it is honoured where the checkpoint asks for it."""
        alphas = torch.cumprod(1.0 - _betas(facts), dim=0)
        if zero_snr and facts.rescale_betas_zero_snr:
            alphas = _rescaled(alphas)
        sigmas = ((1 - alphas) / alphas) ** 0.5
        return cls(alphas, sigmas, sigmas.log())

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """The same for kdrt's own denoiser, with these float32 levels."""
        return NoiseSchedule(self.sigmas.double().numpy())

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional timesteps of ``sigma [B]``, float32: linear in log σ, clamped to the
        table."""
        logs = self.log_sigmas.to(sigma.device)
        log_sigma = sigma.log()
        above = (log_sigma - logs[:, None]).ge(0)
        low = above.cumsum(dim=0).argmax(dim=0).clamp(max=len(logs) - 2)
        weight = (logs[low] - log_sigma) / (logs[low] - logs[low + 1])
        weight = weight.clamp(0, 1)
        return ((1 - weight) * low + weight * (low + 1)).view(sigma.shape)


def default_schedule(
    facts: SchedulerFacts, table: TrainingTable, steps: int
) -> tuple[Tensor, Tensor]:
    """The checkpoint's own grid: σ as float32 ``[steps + 1]``, descending, last 0; and the
    timesteps of all but the last, float32 ``[steps]``.

    Keys that the checkpoint's scheduler file does not hold are LMSDiscreteScheduler's defaults,
    not those of the scheduler it names: the same weights saved again may walk another grid.
    ``trailing`` spacing has a step more than asked for where N / steps is rounded (61, 103, …).

    Raises:
        InvalidRequestError: the spacing is unknown, or beta-distributed σ are asked for without
            SciPy.
    """
    count = len(table.sigmas)
    levels = table.sigmas.numpy()
    if facts.timestep_spacing == "linspace":
        timesteps = np.linspace(0, count - 1, steps, dtype=np.float32)[::-1]
    elif facts.timestep_spacing == "leading":
        timesteps = (np.arange(steps) * (count // steps))[::-1].astype(np.float32)
        timesteps = timesteps + np.float32(facts.steps_offset)
    else:
        timesteps = np.arange(count, 0, -count / steps).round().astype(np.float32) - 1
    grid: NDArray[Any] = np.interp(timesteps, np.arange(count), levels)
    high, low = float(grid[0]), float(grid[-1])
    if facts.use_karras_sigmas:
        ramp = np.linspace(0, 1, steps)
        highest, lowest = high ** (1 / _RHO), low ** (1 / _RHO)
        grid = (highest + ramp * (lowest - highest)) ** _RHO
    elif facts.use_exponential_sigmas:
        grid = np.exp(np.linspace(math.log(high), math.log(low), steps))
    elif facts.use_beta_sigmas:
        grid = low + _beta_quantiles(steps) * (high - low)
    else:
        return _closed(grid), torch.from_numpy(timesteps.copy())
    sigmas = _closed(grid)
    return sigmas, table.timestep(sigmas[:-1])


def _closed(grid: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate([grid, [0.0]]).astype(np.float32))


def karras_grid(table: TrainingTable, steps: int) -> Tensor:
    """Karras et al. 2022, equation 5, over the training range: float32 ``[steps + 1]``, last 0."""
    low, high = float(table.sigmas[0]), float(table.sigmas[-1])
    highest, lowest = high ** (1 / _RHO), low ** (1 / _RHO)
    levels = (highest + torch.linspace(0, 1, steps) * (lowest - highest)) ** _RHO
    return torch.cat([levels, levels.new_zeros(1)])


def _rescaled(alphas_cumprod: Tensor) -> Tensor:
    """√ᾱ shifted and scaled to end at 0 and to begin where it did (Lin et al. 2023, algorithm 1).
    The last ᾱ is then 2⁻²⁴, since σ has to be finite."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    return (roots**2).clamp(min=_MIN_ALPHA)


def _betas(facts: SchedulerFacts) -> Tensor:
    count = facts.num_train_timesteps
    if facts.trained_betas is not None:
        return torch.tensor(facts.trained_betas, dtype=torch.float32)
    if facts.beta_schedule == "linear":
        return torch.linspace(facts.beta_start, facts.beta_end, count, dtype=torch.float32)
    if facts.beta_schedule == "scaled_linear":
        start, end = facts.beta_start**0.5, facts.beta_end**0.5
        return torch.linspace(start, end, count, dtype=torch.float32) ** 2
    if facts.beta_schedule == "squaredcos_cap_v2":
        bars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        ratios = [after / before for before, after in pairwise(bars)]
        return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float32)
    raise InvalidRequestError(
        f"unknown beta schedule {facts.beta_schedule!r}; known: linear, scaled_linear, "
        "squaredcos_cap_v2"
    )


def _beta_quantiles(steps: int) -> NDArray[np.float64]:
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise InvalidRequestError(
            "this checkpoint's scheduler spaces its sigmas by a beta distribution, which needs "
            "SciPy: pip install scipy"
        ) from error
    points = 1 - np.linspace(0, 1, steps)
    return np.array([beta.ppf(point, _BETA_SHAPE, _BETA_SHAPE) for point in points])
