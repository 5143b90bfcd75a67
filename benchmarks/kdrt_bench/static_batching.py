"""Static batching: requests that are equal but for prompt and seed wait for each other, and are one
call of the pipeline. With batches of one it is the queue of a server that makes one request at a
time.

Nothing here knows a pipeline or a real clock, so that it can be tested as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Protocol

from kdrt_bench.arrivals import Arrival, Kind, Served

Most = Callable[[Kind], int]
"""How many requests of a kind are a full batch."""


class Clock(Protocol):
    """Seconds since the start of a trace."""

    def now(self) -> float: ...

    def wait_until(self, seconds: float) -> None:
        """Return then, or at once if that is past."""
        ...


def next_batch(
    waiting: Sequence[Arrival], now: float, most: Most, patience: float
) -> list[Arrival] | float:
    """What an idle server does.

    A batch is ready if it is full or its oldest request has waited for ``patience`` seconds. Of
    those that are ready the one with the oldest request runs.

    Args:
        waiting: the requests that have come, oldest first.
        now: the time.
        most: size of a full batch.
        patience: seconds that a request waits for equal ones while the server is idle.

    Returns:
        The batch to run now; or, if none is ready, when the next one will be: infinity if nobody
        waits.
    """
    by_kind: dict[Kind, list[Arrival]] = {}
    for arrival in waiting:
        by_kind.setdefault(arrival.kind, []).append(arrival)
    # A dictionary keeps the order of its first entries: the kind of the oldest request comes first.
    for kind, same in by_kind.items():
        if len(same) >= most(kind) or now >= same[0].seconds + patience:
            return same[: most(kind)]
    return min((same[0].seconds + patience for same in by_kind.values()), default=inf)


def one_by_one(kind: Kind) -> int:
    """Every request is a batch."""
    return 1


def within_rows(rows: int) -> Most:
    """As many requests as fit into a UNet run of so many rows, at least one."""
    return lambda kind: max(1, rows // kind.rows)


def serve_batches(
    trace: Sequence[Arrival],
    make: Callable[[Sequence[Arrival]], object],
    own: Mapping[Kind, float],
    clock: Clock,
    *,
    most: Most = one_by_one,
    patience: float = 0.0,
) -> list[Served]:
    """Serve a trace by `next_batch`.

    Args:
        trace: the requests, in the order in which they come.
        make: makes a batch, and returns when its images are there.
        own: seconds of each kind alone.
        clock: at 0.
        most, patience: see `next_batch`.

    Returns:
        The answers, as they were given.
    """
    waiting: list[Arrival] = []
    coming = list(reversed(trace))
    served = []
    while waiting or coming:
        now = clock.now()
        while coming and coming[-1].seconds <= now:
            waiting.append(coming.pop())
        batch = next_batch(waiting, now, most, patience)
        if isinstance(batch, float):
            clock.wait_until(min(batch, coming[-1].seconds if coming else inf))
            continue
        make(batch)
        done = clock.now()
        served += [Served(arrival, done, own[arrival.kind]) for arrival in batch]
        waiting = [arrival for arrival in waiting if arrival not in batch]
    return served
