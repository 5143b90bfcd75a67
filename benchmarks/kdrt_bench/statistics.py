"""Numbers from samples: percentiles, and ratios of what ran in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from kdrt_bench.jobs import Strict

CONFIDENCE = 0.95


class Percentiles(Strict):
    """Of ``n`` samples, in their unit. With few, p90 and p99 lie between the two largest."""

    n: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p99: float
    maximum: float


class Ratio(Strict):
    """How many times one takes what another takes, round by round.

    Attributes:
        median: of the ratios of neighbours.
        low, high: an interval for that median, None where there are too few rounds for one.
        confidence: how often such an interval holds the true median, at least.
        of_medians: the ratio of both medians, which need not agree.
        of_minima: the ratio of both minima: what an undisturbed machine would show.
    """

    n: int
    median: float
    low: float | None
    high: float | None
    confidence: float = Field(default=CONFIDENCE)
    of_medians: float
    of_minima: float


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Percentiles, interpolated linearly between samples as NumPy does.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("there are no samples")
    values = np.asarray(samples, dtype=np.float64)
    p50, p90, p99 = (float(p) for p in np.percentile(values, [50, 90, 99]))
    return Percentiles(
        n=len(values),
        mean=float(values.mean()),
        minimum=float(values.min()),
        p50=p50,
        p90=p90,
        p99=p99,
        maximum=float(values.max()),
    )


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """``numerator / denominator``, sample by sample of the same round.

    The interval is that of order statistics: it holds for every distribution, and says nothing
    where the rounds are too few (below six, at 95 %).

    Raises:
        ValueError: not as many of both, or none.
    """
    if len(numerator) != len(denominator) or not numerator:
        raise ValueError("paired samples must be as many, and at least one")
    above, below = np.asarray(numerator, float), np.asarray(denominator, float)
    ratios = above / below
    low, high = median_interval(ratios)
    return Ratio(
        n=len(ratios),
        median=float(np.median(ratios)),
        low=low,
        high=high,
        of_medians=float(np.median(above) / np.median(below)),
        of_minima=float(above.min() / below.min()),
    )


def median_interval(
    samples: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """An interval that holds the median at least that often, whatever the distribution.

    Between the order statistics X(k) and X(n+1-k) the median lies with probability
    1 - 2·P(Binomial(n, 1/2) < k) (Conover, Practical Nonparametric Statistics, 3.2).
    """
    from scipy.stats import quantile_test

    values = np.asarray(samples, float)
    interval = quantile_test(values, p=0.5).confidence_interval(confidence)
    ends = (float(interval.low), float(interval.high))
    if not all(map(math.isfinite, ends)):
        return None, None
    return ends
