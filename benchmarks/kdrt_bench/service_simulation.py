"""A service on paper: three ways to put requests on one device, with the time of a UNet run given.

The device does one thing at a time: UNet runs, and the decoding of finished images, one by one. No
way of serving overlaps the two here, which is the least favourable case for in-flight batching: a
decoding holds up all images in flight. Left out are text encoders, which cost all the same, and the
copies of rows when the images of a run change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdrt.batching.scheduler import Entry, Limits, Scheduler
from kdrt_bench.arrivals import Arrival, Kind, Served

ROWS = 8
"""Most rows of a UNet run, static or in flight."""
SLOTS = 8

Serve = Callable[[Sequence[Arrival], "Cost"], list[Served]]
"""A way to serve: the requests in order of arrival, to their answers in any order."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one device takes.

    Attributes:
        steps: (rows, seconds) of a UNet run, in order of rows, at least two. Between and beyond
            them a run takes what the straight line through the nearest two says.
        decode: seconds of decoding an image.
        buckets: numbers of rows that engines are made for, ascending; a run takes the smallest
            that fits. Empty: every number of rows.
    """

    steps: tuple[tuple[int, float], ...]
    decode: float
    buckets: tuple[int, ...] = ()

    def seconds(self, rows: int) -> float:
        """Of a UNet run."""
        if self.buckets:
            rows = self.buckets[bisect_left(self.buckets, rows)]
        (low, at_low), (high, at_high) = next(
            (pair for pair in pairwise(self.steps) if rows <= pair[1][0]), self.steps[-2:]
        )
        return at_low + (rows - low) * (at_high - at_low) / (high - low)

    def alone(self, kind: Kind) -> float:
        """Seconds of a request that has the device for itself."""
        return kind.steps * self.seconds(kind.rows) + self.decode


def one_at_a_time(arrivals: Sequence[Arrival], cost: Cost) -> list[Served]:
    """Each request from start to end, first come first served."""
    now, served = 0.0, []
    for arrival in arrivals:
        now = max(now, arrival.seconds) + cost.alone(arrival.kind)
        served.append(Served(arrival, now, cost.alone(arrival.kind)))
    return served


def static_batches(wait: float) -> Serve:
    """Equal requests together, from start to end: same steps, sampler, guidance, size.

    A batch is ready when it fills the rows or its oldest request has waited; of those that are
    ready the oldest goes first.

    Args:
        wait: seconds for which a request waits for its like, while the device is idle.
    """

    def serve(arrivals: Sequence[Arrival], cost: Cost) -> list[Served]:
        queues: dict[Kind, deque[Arrival]] = {}
        coming = deque(arrivals)
        now, served = 0.0, list[Served]()
        while coming or any(queues.values()):
            while coming and coming[0].seconds <= now:
                arrival = coming.popleft()
                queues.setdefault(arrival.kind, deque()).append(arrival)
            waiting = [queue for queue in queues.values() if queue]
            ready = [
                queue
                for queue in waiting
                if len(queue) >= ROWS // queue[0].kind.rows or now >= queue[0].seconds + wait
            ]
            if not ready:
                events = [queue[0].seconds + wait for queue in waiting]
                now = min([*events, *(arrival.seconds for arrival in list(coming)[:1])])
                continue
            queue = min(ready, key=lambda queue: queue[0].seconds)
            kind = queue[0].kind
            batch = [queue.popleft() for _ in range(min(len(queue), ROWS // kind.rows))]
            now += kind.steps * cost.seconds(len(batch) * kind.rows)
            for arrival in batch:
                now += cost.decode
                served.append(Served(arrival, now, cost.alone(kind)))
        return served

    return serve


def in_flight(rows: int = ROWS, slots: int = SLOTS) -> Serve:
    """Images of different requests share every run, as `kdrt.batching.scheduler` says."""

    def serve(arrivals: Sequence[Arrival], cost: Cost) -> list[Served]:
        scheduler = Scheduler(limits=lambda klass: Limits(rows, slots))
        left: dict[int, int] = {}
        arrived = 0
        now, served = 0.0, list[Served]()
        while arrived < len(arrivals) or len(scheduler):
            while arrived < len(arrivals) and arrivals[arrived].seconds <= now:
                kind = arrivals[arrived].kind
                scheduler.add(Entry(arrived, "one", "one", kind.rows, kind.steps))
                left[arrived] = kind.steps
                arrived += 1
            tick = scheduler.next_tick()
            if tick is None:
                now = arrivals[arrived].seconds
                continue
            images = [image for image in tick.images if isinstance(image, int)]
            now += cost.seconds(sum(arrivals[image].kind.rows for image in images))
            for image in images:
                left[image] -= 1
                if left[image] == 0:
                    scheduler.remove(image)
                    now += cost.decode
                    arrival = arrivals[image]
                    served.append(Served(arrival, now, cost.alone(arrival.kind)))
        return served

    return serve
