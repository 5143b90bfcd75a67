"""The simulated services do what they say, on schedules that one can work out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kdrt_bench.arrivals import (
    MIX,
    Arrival,
    Kind,
    Served,
    mean_of_mix,
    poisson_arrivals,
    service,
)
from kdrt_bench.service_simulation import Cost, Serve, in_flight, one_at_a_time, static_batches

UNGUIDED = Kind(4, "euler", False, 1.0)
GUIDED = Kind(10, "euler", True, 1.0)
OTHER = Kind(10, "ddim", True, 1.0)
UNIT = Cost(((1, 1.0), (2, 2.0)), decode=0.0)
"""A run takes a second a row: nothing is gained by sharing it."""
FREE = Cost(((1, 1.0), (2, 1.0)), decode=0.0)
"""A run takes a second, however many rows it has."""

WAYS = {
    "one": one_at_a_time,
    "static": static_batches(0.0),
    "waits": static_batches(3.0),
    "in flight": in_flight(),
}


def ends(serve: Serve, cost: Cost, *arrivals: tuple[float, Kind]) -> list[float]:
    """When each request is done, in order of arrival."""
    requests = [Arrival(seconds, kind) for seconds, kind in arrivals]
    served = serve(requests, cost)
    assert len(served) == len(requests)
    return [next(s.finished for s in served if s.arrival is request) for request in requests]


def test_times_between_and_beyond_the_published_lie_on_lines() -> None:
    cost = Cost(((2, 1.0), (4, 2.0), (8, 6.0)), decode=0.5)
    assert [cost.seconds(rows) for rows in (2, 4, 8)] == [1.0, 2.0, 6.0]
    assert [cost.seconds(rows) for rows in (1, 3, 6, 9)] == [0.5, 1.5, 4.0, 7.0]
    assert cost.alone(GUIDED) == 10 * 1.0 + 0.5
    assert cost.alone(UNGUIDED) == 4 * 0.5 + 0.5


def test_a_bucket_is_paid_whole() -> None:
    cost = Cost(((1, 1.0), (8, 8.0)), decode=0.0, buckets=(1, 2, 4, 8))
    assert [cost.seconds(rows) for rows in (1, 2, 3, 5, 8)] == [1.0, 2.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize("serve", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", MIX, ids=str)
def test_a_request_alone_takes_its_own_work(serve: Serve, kind: Kind) -> None:
    cost = Cost(((1, 0.25), (2, 0.375)), decode=0.125)
    (served,) = serve([Arrival(2.0, kind)], cost)
    assert served.own == cost.alone(kind)
    wait = 3.0 if serve is WAYS["waits"] else 0.0
    assert served.latency == pytest.approx(served.own + wait)


def test_one_at_a_time_is_first_come_first_served() -> None:
    cost = Cost(((1, 1.0), (2, 1.0)), decode=1.0)
    assert ends(one_at_a_time, cost, (0.0, GUIDED), (1.0, UNGUIDED), (20.0, UNGUIDED)) == [
        11.0,
        16.0,
        25.0,
    ]


def test_equal_requests_that_wait_together_are_one_batch() -> None:
    serve = static_batches(0.0)
    first, *rest = ends(serve, FREE, (0.0, GUIDED), (1.0, OTHER), (2.0, GUIDED), (3.0, OTHER))
    assert first == 10.0
    # The oldest that waits is of the other kind; its like goes with it.
    assert rest == [20.0, 30.0, 20.0]


def test_a_batch_has_no_more_rows_than_a_run() -> None:
    five = [(0.0, GUIDED)] * 5
    assert ends(static_batches(1.0), FREE, *five) == [10.0] * 4 + [20.0]


def test_a_request_waits_for_its_like_up_to_the_bound() -> None:
    serve = static_batches(3.0)
    assert ends(serve, FREE, (0.0, GUIDED), (2.0, GUIDED)) == [13.0, 13.0]
    assert ends(serve, FREE, (0.0, GUIDED), (4.0, GUIDED)) == [13.0, 23.0]


def test_a_full_batch_does_not_wait() -> None:
    assert ends(static_batches(3.0), FREE, *[(0.0, GUIDED)] * 4) == [10.0] * 4


def test_images_in_flight_share_runs_whatever_they_are() -> None:
    assert ends(in_flight(), FREE, (0.0, GUIDED), (2.5, UNGUIDED), (3.5, OTHER)) == [
        10.0,
        7.0,
        14.0,
    ]


def test_images_in_flight_pay_for_the_rows_of_each_run() -> None:
    # Both for 4 runs of 3 rows, then the guided one alone for 6 runs of 2.
    assert ends(in_flight(), UNIT, (0.0, GUIDED), (0.0, UNGUIDED)) == [24.0, 12.0]


def test_decoding_holds_up_what_is_in_flight() -> None:
    cost = Cost(((1, 1.0), (2, 1.0)), decode=5.0)
    assert ends(in_flight(), cost, (0.0, GUIDED), (0.0, UNGUIDED)) == [20.0, 9.0]


def test_fewer_rows_are_kept_to() -> None:
    assert ends(in_flight(rows=2), FREE, (0.0, GUIDED), (0.0, OTHER)) == [10.0, 20.0]


@pytest.mark.parametrize("serve", WAYS.values(), ids=WAYS)
def test_every_request_is_served_once_and_no_sooner_than_possible(serve: Serve) -> None:
    cost = Cost(((1, 0.6), (2, 1.0)), decode=0.5)
    arrivals = poisson_arrivals(0.05, 200, seed=5)
    served: Sequence[Served] = serve(arrivals, cost)
    assert sorted(one.arrival.seconds for one in served) == [a.seconds for a in arrivals]
    assert all(one.latency >= one.own * (1 - 1e-9) for one in served)


def test_what_shares_nothing_gains_no_images_but_spares_the_short_their_wait() -> None:
    arrivals = poisson_arrivals(
        0.8 / mean_of_mix({kind: UNIT.alone(kind) for kind in MIX}), 1000, seed=7
    )
    alone, ours = (service(serve(arrivals, UNIT)) for serve in (one_at_a_time, in_flight()))
    assert ours.images_per_second == pytest.approx(alone.images_per_second, rel=0.02)
    assert ours.slowdown.p99 < alone.slowdown.p99 / 2
