"""Static batching as a policy, and its loop with a clock that nobody waits for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from kdrt_bench.arrivals import Arrival, Kind
from kdrt_bench.static_batching import next_batch, one_by_one, serve_batches, within_rows

QUICK = Kind(4, "lcm", False, 0.5)
USUAL = Kind(20, "euler", True, 0.5)
OWN = {QUICK: 1.0, USUAL: 4.0}
MOST = within_rows(4)


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait_until(self, seconds: float) -> None:
        assert math.isfinite(seconds)
        self.seconds = max(self.seconds, seconds)


def made_in(clock: FakeClock, batches: list[list[Arrival]]) -> Callable[[Sequence[Arrival]], None]:
    """A machine for which a batch is as much work as its first request alone."""

    def make(batch: Sequence[Arrival]) -> None:
        batches.append(list(batch))
        clock.seconds += OWN[batch[0].kind]

    return make


def test_rows_bound_a_batch_and_every_batch_has_a_request() -> None:
    assert MOST(QUICK) == 4
    assert MOST(USUAL) == 2
    assert within_rows(1)(USUAL) == 1
    assert one_by_one(QUICK) == 1


def test_nobody_waits_for_nothing() -> None:
    assert next_batch([], 5.0, MOST, 1.0) == math.inf


def test_a_request_waits_for_equal_ones_and_no_longer_than_it_may() -> None:
    waiting = [Arrival(1.0, USUAL), Arrival(1.5, QUICK)]
    assert next_batch(waiting, 1.6, MOST, 2.0) == 3.0
    assert next_batch(waiting, 3.0, MOST, 2.0) == waiting[:1]


def test_a_full_batch_goes_at_once_and_leaves_the_rest() -> None:
    same = [Arrival(1.0 + place / 10, USUAL) for place in range(3)]
    assert next_batch(same, 1.3, MOST, 2.0) == same[:2]


def test_of_two_that_are_ready_the_one_with_the_oldest_request_goes() -> None:
    oldest = Arrival(0.0, QUICK)
    full = [Arrival(1.0, USUAL), Arrival(1.0, USUAL)]
    assert next_batch([oldest, *full], 1.0, MOST, 2.0) == full
    assert next_batch([oldest, *full], 2.0, MOST, 2.0) == [oldest]


def test_one_by_one_is_first_come_first_served() -> None:
    clock, batches = FakeClock(), list[list[Arrival]]()
    trace = [Arrival(1.0, USUAL), Arrival(2.0, QUICK), Arrival(2.5, USUAL), Arrival(20.0, QUICK)]
    served = serve_batches(trace, made_in(clock, batches), OWN, clock)
    assert batches == [[arrival] for arrival in trace]
    assert [one.finished for one in served] == [5.0, 6.0, 10.0, 21.0]
    assert [one.own for one in served] == [4.0, 1.0, 4.0, 1.0]


def test_what_comes_while_a_batch_runs_is_batched() -> None:
    clock, batches = FakeClock(), list[list[Arrival]]()
    trace = [Arrival(0.0, USUAL), Arrival(1.0, USUAL), Arrival(1.5, QUICK), Arrival(2.0, USUAL)]
    served = serve_batches(trace, made_in(clock, batches), OWN, clock, most=MOST, patience=0.5)
    assert batches == [[trace[0]], [trace[1], trace[3]], [trace[2]]]
    assert {one.arrival: one.finished for one in served} == {
        trace[0]: 4.5,
        trace[1]: 8.5,
        trace[3]: 8.5,
        trace[2]: 9.5,
    }


@pytest.mark.parametrize("patience", [0.0, 0.3, 5.0])
def test_every_request_is_answered_once(patience: float) -> None:
    clock, batches = FakeClock(), list[list[Arrival]]()
    trace = [Arrival(0.7 * place, (QUICK, USUAL)[place % 3 == 0]) for place in range(20)]
    served = serve_batches(trace, made_in(clock, batches), OWN, clock, most=MOST, patience=patience)
    assert sorted(one.arrival.seconds for one in served) == [one.seconds for one in trace]
    for batch in batches:
        assert len({arrival.kind for arrival in batch}) == 1
        assert len(batch) <= MOST(batch[0].kind)
