"""Random requests have the rate and the mix they claim; statistics count what they say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from kdrt_bench.arrivals import MIX, Arrival, Kind, Served, mean_of_mix, poisson_arrivals, service

SHORT, LONG = Kind(1, "euler", False, 0.5), Kind(10, "euler", True, 0.5)


def test_arrivals_are_in_order_at_their_rate_and_of_the_mix() -> None:
    arrivals = poisson_arrivals(2.0, 20_000, seed=1)
    times = [arrival.seconds for arrival in arrivals]
    assert times == sorted(times)
    # The standard deviation of the last time is its mean over √20,000: 0.7 %.
    assert times[-1] == pytest.approx(10_000, rel=0.03)
    gaps = [after - before for before, after in pairwise(times)]
    # The gaps of a Poisson process: as many beyond the mean as e⁻¹ says.
    assert sum(gap > 0.5 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.015)
    counts = Counter(arrival.kind for arrival in arrivals)
    for kind in MIX:
        assert counts[kind] / len(arrivals) == pytest.approx(kind.share, abs=0.015)


def test_a_seed_is_one_order_of_requests_at_every_rate() -> None:
    slow, fast = (poisson_arrivals(rate, 50, seed=3) for rate in (1.0, 4.0))
    assert slow == poisson_arrivals(1.0, 50, seed=3)
    assert slow != poisson_arrivals(1.0, 50, seed=4)
    assert [arrival.kind for arrival in slow] == [arrival.kind for arrival in fast]
    assert [arrival.seconds for arrival in slow] == pytest.approx([4 * a.seconds for a in fast])


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(rate, 1, seed=0)


def test_the_mix_is_whole_and_spans_4_to_50_steps() -> None:
    assert sum(kind.share for kind in MIX) == pytest.approx(1)
    assert {min(k.steps for k in MIX), max(k.steps for k in MIX)} == {4, 50}
    assert {kind.rows for kind in MIX} == {1, 2}


def test_the_mean_weighs_by_share() -> None:
    often, seldom = Kind(1, "euler", False, 3.0), Kind(2, "euler", False, 1.0)
    assert mean_of_mix({often: 1.0, seldom: 9.0}) == pytest.approx(3.0)


def test_latency_slowdown_and_rate_are_counted() -> None:
    served = [
        Served(Arrival(10.0, SHORT), finished=14.0, own=1.0),
        Served(Arrival(12.0, LONG), finished=18.0, own=3.0),
    ]
    result = service(served, leave_out=0.0)
    assert (result.latency.minimum, result.latency.maximum) == (4.0, 6.0)
    assert (result.slowdown.minimum, result.slowdown.maximum) == (2.0, 4.0)
    assert result.slowdown_of_short.n == 1
    assert result.slowdown_of_short.p50 == 4.0
    assert result.images_per_second == pytest.approx(2 / 8)


def test_the_first_to_come_are_left_out_but_counted_as_images() -> None:
    served = [Served(Arrival(float(n), SHORT), n + 10.0 - n / 2, 1.0) for n in range(10)]
    result = service(served[::-1])
    assert result.latency.n == 9
    assert result.latency.maximum == 9.5
    assert result.images_per_second == pytest.approx(10 / 14.5)


def test_without_answers_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="no request"):
        service([])
