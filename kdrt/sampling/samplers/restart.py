"""Restart sampling: go part of the way again from fresh noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers.draft import Draft

_LOW, _HIGH = 0.1, 2.0
_RHO = 7.0


def restart(sigmas: Sequence[float], *, s_noise: float = 1.0) -> Plan:
    """Heun's method with restarts: forward noise from σ ≈ 0.1 back up to σ ≈ 2, and down again
    (Xu et al. 2023, "Restart Sampling for Improving Generative Processes").

    The web UI's parameters: from 20 steps, 9 of them are one restart; from 36, half of them are
    two. What is left is a Karras grid between the ends of the given one, whose inner σ do not
    count, and the restart begins and ends at the σ of it nearest to the bounds. With fewer than
    20 steps the given grid is followed once, by plain Heun. The plan's grid has a rise for every
    restart, and its noise belongs to the step before, as churn does.

    Args:
        sigmas: the grid, strictly descending.
        s_noise: factor on the noise.
    """
    grid = _restarting_grid(sigmas)
    draft = Draft("restart", grid.levels)
    for (s, _), (t, level) in zip(draft.intervals(), grid.ends, strict=True):
        if t == 0:
            draft.stage(s, 0.0, [1.0])
            continue
        draft.stage(s, t / s, [1 - t / s], ends_step=False)
        half = (s - t) / 2
        noise = s_noise * math.sqrt((level - t) * (level + t))
        weights = [half / t, half * (2 / s - 1 / t)]
        draft.stage(t, t / s, weights, noise=noise, over=(level, level))
    return draft.plan()


class _Grid:
    """The σ of the states between steps, and for every step where it goes and is raised to."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.levels = [sigmas[0]]
        self.ends: list[tuple[float, float]] = []
        self.descend(sigmas[1:])

    def descend(self, sigmas: Sequence[float]) -> None:
        self.levels += sigmas
        self.ends += [(sigma, sigma) for sigma in sigmas]

    def rise(self, sigma: float) -> None:
        low, _ = self.ends[-1]
        self.ends[-1] = low, sigma
        self.levels[-1] = sigma


def _restarting_grid(sigmas: Sequence[float]) -> _Grid:
    steps = len(sigmas) - 1
    if steps < 20:
        return _Grid(sigmas)
    again, times = (9, 1) if steps < 36 else (steps // 4, 2)
    ends_in_zero = sigmas[-1] == 0
    lowest = sigmas[-2] if ends_in_zero else sigmas[-1]
    main = _karras(steps - again * times + (0 if ends_in_zero else 1), sigmas[0], lowest)
    low, high = _nearest(main, _LOW), _nearest(main, _HIGH)
    if high >= low:  # the grid does not reach from the one bound to the other
        return _Grid(sigmas)
    grid = _Grid(main[: low + 1])
    for _ in range(times):
        first, *others = _karras(again + 1, main[high], main[low])
        grid.rise(first)
        grid.descend(others)
    grid.descend([*main[low + 1 :], *([0.0] if ends_in_zero else [])])
    return grid


def _karras(count: int, highest: float, lowest: float) -> list[float]:
    """Karras et al. 2022, equation 5: even in the seventh root of σ."""
    first, last = highest ** (1 / _RHO), lowest ** (1 / _RHO)
    shares = [index / (count - 1) for index in range(1, count - 1)]
    inner = [(first + share * (last - first)) ** _RHO for share in shares]
    return [highest, *inner, lowest]


def _nearest(sigmas: Sequence[float], sigma: float) -> int:
    return min(range(len(sigmas)), key=lambda index: abs(sigmas[index] - sigma))
