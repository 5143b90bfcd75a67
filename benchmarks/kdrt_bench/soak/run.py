"""The phases of a soak: capacity, load, what is left afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress

import httpx

from kdrt_bench.jobs import Strict
from kdrt_bench.soak.arrivals import closed_loop, offer, poisson_times
from kdrt_bench.soak.asks import MIX
from kdrt_bench.soak.honest import Answered, Clients
from kdrt_bench.soak.rude import RudeClients, Rudeness
from kdrt_bench.soak.server import Sample, ServerProcess, sample
from kdrt_bench.soak.verdict import Facts

AT_CAPACITY = 8
"""Clients that ask again and again: enough to fill every evaluation, too few to be refused."""
_MOST_HONEST, MOST_RUDE = 256, 64
"""Connections at once."""
_SAMPLES = 300
_SHORTEST_PERIOD = 0.25
_SEED_AGAIN = 7
_DRAINED = 120.0
"""Seconds that the server gets to make what it has accepted."""
_IDLE = 8.0
"""Seconds after which it has closed connections that nobody uses."""


class Settings(Strict):
    """Of a soak.

    Attributes:
        seconds: of load.
        capacity_seconds: in which the capacity is measured.
        load: what is asked for over what can be made.
        is_rude: whether rude clients come too, as often as honest ones, but for those beyond
            `MOST_RUDE` at a time.
        patience: seconds after which the server should have let go a client that does nothing; an
            answer of which nothing comes for longer than its deadline is lost.
        deadline: seconds that the server gives a request.
    """

    seconds: float
    capacity_seconds: float
    load: float = 2.0
    is_rude: bool = False
    patience: float = 75.0
    deadline: float = 300.0


class Seen(Strict):
    """What was seen.

    Attributes:
        facts: of the verdict.
        answered: every honest request of the load.
        left_out: requests that were not sent, as too many were under way.
        offered: requests a second that were due.
        seconds: of load.
        rude: every rude client.
    """

    facts: Facts
    answered: tuple[Answered, ...]
    left_out: int
    offered: float
    seconds: float
    rude: tuple[Rudeness, ...]


async def soak(
    server: ServerProcess, settings: Settings, watch: Callable[[str], object] = lambda _: None
) -> Seen:
    """Put a server that is ready under load.

    Args:
        server: it; nobody else uses it.
        settings: how much, and for how long.
        watch: told what is going on.
    """
    rude = RudeClients(server.port, settings.patience)
    patience = settings.deadline + settings.patience
    async with (
        aclosing(Clients(server.url, _MOST_HONEST, patience)) as clients,
        httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as watcher,
    ):
        watch("an image of each kind alone")
        alone = await _one_of_each(clients)
        watch(f"capacity, for {settings.capacity_seconds:g} s")
        per_second, capacity = await _capacity(server, clients, watcher, settings.capacity_seconds)
        await asyncio.sleep(_IDLE)
        start = time.monotonic()
        before = await sample(server, watcher, start)
        watch(
            f"{settings.load * per_second:.2f} requests a second for {settings.seconds:g} s; it "
            f"can do {per_second:.2f}"
        )
        samples, left_out = await _under_load(
            server, settings, clients, rude, watcher, settings.load * per_second
        )
        answered = tuple(clients.answered)
        watch("what is left")
        await _drained(server, watcher)
        await asyncio.sleep(_IDLE)
        after = await sample(server, watcher, start)
        again = await _one_of_each(clients)
    facts = Facts(
        statuses=dict(sorted(Counter(each.status for each in answered).items())),
        problems=dict(Counter(each.problem for each in answered if each.problem)),
        rude=_by_kind(rude.seen),
        capacity=capacity,
        throughput=_steps_a_second(samples),
        before=before,
        after=after,
        samples=tuple(samples),
        is_same=alone == again,
        tracebacks=server.faults(),
    )
    return Seen(
        facts=facts,
        answered=answered,
        left_out=left_out,
        offered=settings.load * per_second,
        seconds=settings.seconds,
        rude=tuple(rude.seen),
    )


async def _one_of_each(clients: Clients) -> list[tuple[bytes, ...]]:
    """The files of an image of each kind of request, one after the other.

    Raises:
        RuntimeError: there is none.
    """
    made = []
    for ask in MIX:
        outcome = await clients.ask(ask, _SEED_AGAIN)
        if outcome.status != 200 or outcome.problem:
            raise RuntimeError(
                f"alone, a request ({ask.dialect}) ended with {outcome.status}: {outcome.problem}"
            )
        made.append(outcome.images)
    return made


async def _capacity(
    server: ServerProcess, clients: Clients, watcher: httpx.AsyncClient, seconds: float
) -> tuple[float, float]:
    """Requests, and steps of images, a second with as many clients as it can well do with."""
    start = time.monotonic()
    before = await sample(server, watcher, start)
    await closed_loop(
        seconds,
        AT_CAPACITY,
        lambda number, due: clients.ask_something(number, due, start),
    )
    after = await sample(server, watcher, start)
    requests = len(clients.answered)
    clients.answered.clear()
    return requests / after.seconds, _steps_a_second([before, after])


async def _under_load(
    server: ServerProcess,
    settings: Settings,
    clients: Clients,
    rude: RudeClients,
    watcher: httpx.AsyncClient,
    rate: float,
) -> tuple[list[Sample], int]:
    """What was sampled while requests came, and how many were left out."""
    samples: list[Sample] = []
    start = time.monotonic()
    period = max(_SHORTEST_PERIOD, settings.seconds / _SAMPLES)

    async def look() -> None:
        while True:
            with suppress(httpx.HTTPError):  # a server that does not answer is seen by its clients
                samples.append(await sample(server, watcher, start))
            await asyncio.sleep(period)

    honest = offer(
        poisson_times(rate, settings.seconds, random.Random(1)),
        lambda number, due: clients.ask_something(number, due, start),
        _MOST_HONEST,
    )
    others = offer(
        poisson_times(rate, settings.seconds, random.Random(2)) if settings.is_rude else [],
        lambda number, due: rude.do_something(),
        MOST_RUDE,
    )
    looking = asyncio.ensure_future(look())
    try:
        left_out, _ = await asyncio.gather(honest, others)
    finally:
        looking.cancel()
    return [each for each in samples if each.seconds <= settings.seconds], left_out


async def _drained(server: ServerProcess, watcher: httpx.AsyncClient) -> None:
    """Wait until nothing waits or runs, or for as long as that may take."""
    end = time.monotonic() + _DRAINED
    while time.monotonic() < end:
        seen = await sample(server, watcher, 0.0)
        if not seen.waiting and not seen.running:
            return
        await asyncio.sleep(_SHORTEST_PERIOD)


def _steps_a_second(samples: Sequence[Sample]) -> float:
    """Between the first and the last; 0 where there are not two."""
    if len(samples) < 2:
        return 0.0
    first, last = samples[0], samples[-1]
    return (last.steps - first.steps) / (last.seconds - first.seconds)


def _by_kind(seen: Sequence[Rudeness]) -> dict[str, dict[int, int]]:
    kinds = sorted({each.kind for each in seen})
    return {
        kind: dict(sorted(Counter(each.status for each in seen if each.kind == kind).items()))
        for kind in kinds
    }
