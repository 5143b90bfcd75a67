"""Percentiles and ratios, against closed forms and NumPy."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_bench.statistics import median_interval, paired_ratio, percentiles

seconds = st.floats(1e-4, 1e3)
samples = st.lists(seconds, min_size=1, max_size=40)


@given(samples)
def test_percentiles_are_ordered_and_within_the_samples(values: list[float]) -> None:
    found = percentiles(values)
    assert found.minimum <= found.p50 <= found.p90 <= found.p99 <= found.maximum
    assert (found.minimum, found.maximum, found.n) == (min(values), max(values), len(values))
    assert math.isclose(found.p50, float(np.median(values)))


def test_percentiles_of_a_hundred_numbers() -> None:
    found = percentiles([float(n) for n in range(101)])
    assert (found.p50, found.p90, found.p99, found.mean) == (50, 90, 99, 50)


def test_nothing_has_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentiles([])


@given(samples, st.floats(0.1, 10))
def test_a_constant_ratio_is_found_whatever_the_rounds_took(
    values: list[float], ratio: float
) -> None:
    found = paired_ratio([ratio * value for value in values], values)
    assert math.isclose(found.median, ratio, rel_tol=1e-9)
    assert math.isclose(found.of_medians, ratio, rel_tol=1e-9)
    assert math.isclose(found.of_minima, ratio, rel_tol=1e-9)
    if found.low is not None:
        assert math.isclose(found.low, ratio, rel_tol=1e-9)


def test_a_disturbance_of_both_cancels_in_pairs() -> None:
    # Half of the rounds meet a machine that is busy: medians of both sides alone would not agree.
    base = [1.0, 1.0, 9.0, 9.0, 1.0, 9.0, 1.0]
    assert paired_ratio([2 * value for value in base], base).median == 2


def test_samples_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", [6, 9, 10, 25])
def test_the_interval_is_that_of_order_statistics(n: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    low, high = median_interval(values)
    # The largest k with 2·P(Binomial(n, 1/2) < k) of at most 5 %.
    tails = list(accumulate(math.comb(n, i) / 2**n for i in range(n)))
    k = sum(2 * tail <= 0.05 for tail in tails)
    assert (low, high) == (k, n + 1 - k)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_samples_have_no_interval(n: int) -> None:
    assert median_interval([1.0] * n) == (None, None)
