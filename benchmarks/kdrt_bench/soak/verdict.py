"""What must not have happened in a soak. Pure: a report in, reasons out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kdrt_bench.jobs import Strict
from kdrt_bench.soak.rude import HELD
from kdrt_bench.soak.server import Sample

REFUSED = (429, 503, 504)
"""How a server may refuse an honest request that is too much."""


class Bounds(Strict):
    """Beyond which a soak fails.

    Attributes:
        growth: MiB a minute that memory grows in the second half of the load.
        plateau: memory afterwards over the most in the second half. What a large image took once
            stays with the process, so the median would tell when such an image came.
        leaked: threads, and open files, that there are more afterwards than before.
        throughput: steps of images a second under load, over those at capacity.
    """

    growth: float = 4.0
    plateau: float = 1.05
    leaked: int = 8
    throughput: float = 0.5


class Facts(Strict):
    """What the verdict is about.

    Attributes:
        statuses: honest requests by the status they ended with; 0 is no answer.
        problems: answers that claim success and are none, and lost ones, by what is wrong.
        rude: rude clients by what they did and the status it ended with.
        capacity, throughput: steps of images a second, without and with too many requests. Images
            would be no measure: of a full queue requests of several images are refused sooner.
        before, after: the load, when nothing was asked for.
        samples: during the load, in the order of time.
        is_same: whether images made after the load are those made before it, bit for bit.
        tracebacks: in the server's log.
    """

    statuses: dict[int, int]
    problems: dict[str, int]
    rude: dict[str, dict[int, int]]
    capacity: float
    throughput: float
    before: Sample
    after: Sample
    samples: tuple[Sample, ...]
    is_same: bool
    tracebacks: int


def failures(facts: Facts, bounds: Bounds) -> list[str]:
    """What went wrong, a sentence each; none if the server passed."""
    return [*_answers(facts), *_afterwards(facts, bounds), *_memory(facts, bounds)]


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """How much ``values`` grow in a second: the median of the slopes between all pairs, which a few
    outliers do not move (Sen 1968). 0 for fewer than two.

    Args:
        seconds: ascending, no two equal.
        values: as many.
    """
    x, y = np.asarray(seconds, float), np.asarray(values, float)
    first, second = np.triu_indices(len(x), 1)
    if not len(first):
        return 0.0
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def second_half(samples: Sequence[Sample]) -> list[Sample]:
    """Those of the second half of the time."""
    if not samples:
        return []
    middle = (samples[0].seconds + samples[-1].seconds) / 2
    return [each for each in samples if each.seconds >= middle]


def growth(samples: Sequence[Sample]) -> float:
    """MiB a minute in the second half of the time."""
    late = second_half(samples)
    return 60 * slope([each.seconds for each in late], [each.memory for each in late])


def _answers(facts: Facts) -> Iterator[str]:
    if not facts.statuses.get(200):
        yield "no request was accepted, so nothing was shown"
    for problem, count in facts.problems.items():
        yield f"{count} of the answers: {problem}"
    for status, count in facts.statuses.items():
        if status not in (0, 200, *REFUSED):
            yield f"{_counted(count, 'honest request')} ended with {status}"
    for kind, statuses in facts.rude.items():
        for status, count in statuses.items():
            if status >= 500 and status not in REFUSED:
                yield f"{_counted(count, 'client')} ({kind}) got the status {status}"
            if status == HELD:
                yield f"the server never let go {_counted(count, 'client')} ({kind})"
    if facts.tracebacks:
        yield f"{_counted(facts.tracebacks, 'traceback')} in the server's log"


def _afterwards(facts: Facts, bounds: Bounds) -> Iterator[str]:
    before, after = facts.before, facts.after
    if facts.throughput < bounds.throughput * facts.capacity:
        yield (
            f"{facts.throughput:.0f} steps a second under load, and {facts.capacity:.0f} without: "
            f"less than {bounds.throughput:.0%}"
        )
    if after.waiting or after.running:
        yield (
            f"{_counted(after.waiting, 'image')} waiting and {after.running} running when nothing "
            "is asked for"
        )
    if not facts.is_same:
        yield "an image made afterwards is not the one made before"
    for what, more in (
        ("thread", after.threads - before.threads),
        ("open file", after.files - before.files),
    ):
        if more > bounds.leaked:
            yield f"{_counted(more, what)} more than before, which is over {bounds.leaked}"


def _memory(facts: Facts, bounds: Bounds) -> Iterator[str]:
    late = second_half(facts.samples)
    if not late:
        yield "nothing was seen of the server's memory"
        return
    grown = growth(facts.samples)
    if grown > bounds.growth:
        yield (
            f"memory grew by {grown:.1f} MiB a minute in the second half, over {bounds.growth:g}"
        )
    most = max(each.memory for each in late)
    if facts.after.memory > bounds.plateau * most:
        yield (
            f"memory is {facts.after.memory:.0f} MiB afterwards, over {bounds.plateau:g} times the "
            f"{most:.0f} MiB under load"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
