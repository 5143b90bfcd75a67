"""Requests at random, with a clock that goes only when somebody works or sleeps."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from kdrt_bench import runners
from kdrt_bench.jobs import ImageWorkload, Server
from kdrt_bench.runners import serve


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runners, "time", clock)
    return clock


def arrivals(workload: Server) -> list[float]:
    gaps = random.Random(workload.seed)
    return list(accumulate(gaps.expovariate(workload.rate) for _ in range(workload.requests)))


@pytest.mark.parametrize("work", [0.01, 1.0, 3.0])
def test_latency_counts_from_arrival_and_requests_wait_for_those_before(
    clock: Clock, work: float
) -> None:
    workload = Server(generation=ImageWorkload(), rate=0.7, requests=20, seed=3, limit=1e9)
    latencies = serve(lambda: clock.sleep(work), workload)
    free, expected = 0.0, []
    for arrival in arrivals(workload):
        free = max(free, arrival) + work
        expected.append(free - arrival)
    assert latencies == pytest.approx(expected)
    assert min(latencies) >= work * 0.999


def test_what_comes_after_the_limit_is_not_served(clock: Clock) -> None:
    workload = Server(generation=ImageWorkload(), rate=1.0, requests=1000, limit=30)
    latencies = serve(lambda: clock.sleep(0.1), workload)
    assert len(latencies) == sum(arrival <= 30 for arrival in arrivals(workload))
    assert serve(lambda: clock.sleep(100), workload.model_copy(update={"limit": 0.0})) == []
