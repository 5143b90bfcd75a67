"""Requests that arrive at random, and what their users saw: for every benchmark of a service.

Times are in seconds from the first moment. A request is one image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kdrt_bench.jobs import Strict
from kdrt_bench.statistics import Percentiles, percentiles

LOADS = (0.3, 0.5, 0.7, 0.9, 1.1)
"""Work that arrives in a second over what a second can do, one request at a time."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What two requests have in common that could be one static batch.

    Attributes:
        steps: each of one evaluation.
        sampler: of kdrt.
        guided: an evaluation takes two rows, else one.
        share: of all requests.
    """

    steps: int
    sampler: str
    guided: bool
    share: float

    @property
    def rows(self) -> int:
        return 2 if self.guided else 1


MIX = (
    Kind(4, "lcm", False, 0.20),
    Kind(8, "lcm", False, 0.10),
    Kind(20, "dpmpp_2m", True, 0.20),
    Kind(20, "euler_ancestral", True, 0.15),
    Kind(25, "euler", True, 0.10),
    Kind(30, "dpmpp_2m_sde", True, 0.15),
    Kind(50, "ddim", True, 0.10),
)
"""Previews in few steps without guidance, the usual 20 to 30 steps, and some long ones: 21 steps in
the mean. All of one size and one set of weights."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes."""

    seconds: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was answered.

    Attributes:
        arrival: it.
        finished: when its user had the image.
        own: how long it would have taken alone.
    """

    arrival: Arrival
    finished: float
    own: float

    @property
    def latency(self) -> float:
        return self.finished - self.arrival.seconds


class Service(Strict):
    """What a service did for its users.

    Attributes:
        latency: seconds from a request to its image.
        slowdown: latency over the work of the request alone, request by request. It is the
            measure of fairness: a service that treats all alike has its p99 near its p50.
        slowdown_of_short: the same, of the requests with the least work.
        images_per_second: from the first request to the last image.
    """

    latency: Percentiles
    slowdown: Percentiles
    slowdown_of_short: Percentiles
    images_per_second: float


def poisson_arrivals(
    rate: float, number: int, seed: int, mix: Sequence[Kind] = MIX
) -> list[Arrival]:
    """That many requests, ``rate`` of them a second in the mean, each at its own time. Equal
    arguments give equal requests; another rate stretches the times and keeps the kinds.

    Raises:
        ValueError: the rate is not positive.
    """
    if rate <= 0:
        raise ValueError("the rate must be positive")
    source = random.Random(seed)
    shares = [kind.share for kind in mix]
    now, arrivals = 0.0, []
    for _ in range(number):
        now += source.expovariate(1.0) / rate
        arrivals.append(Arrival(now, source.choices(mix, shares)[0]))
    return arrivals


def mean_of_mix(own: dict[Kind, float]) -> float:
    """The mean work of a request: its inverse is what one request at a time can do in a second.

    Args:
        own: seconds of each kind alone.
    """
    return sum(kind.share * seconds for kind, seconds in own.items()) / sum(k.share for k in own)


def service(served: Sequence[Served], leave_out: float = 0.1) -> Service:
    """What a service did, from its answers in any order.

    Args:
        leave_out: the part of the requests that came first and found it empty: they are left out
            of latencies and slowdowns.

    Raises:
        ValueError: nothing is left.
    """
    by_arrival = sorted(served, key=lambda one: one.arrival.seconds)
    counted = by_arrival[int(leave_out * len(by_arrival)) :]
    if not counted:
        raise ValueError("no request was answered")
    least = min(one.own for one in counted)
    start, end = by_arrival[0].arrival.seconds, max(one.finished for one in served)
    return Service(
        latency=percentiles([one.latency for one in counted]),
        slowdown=percentiles([one.latency / one.own for one in counted]),
        slowdown_of_short=percentiles(
            [one.latency / one.own for one in counted if one.own == least]
        ),
        images_per_second=len(served) / (end - start),
    )
