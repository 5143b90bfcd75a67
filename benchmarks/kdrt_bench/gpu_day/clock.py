"""Milliseconds by CUDA events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

from kdrt_bench.statistics import Ratio, paired_ratio

Work = Callable[[], object]

WARM_UP = 2


def milliseconds(work: Work) -> float:
    """One run, between two events on the current stream."""
    # By name at every call: on a CPU a rehearsal puts its own there.
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def median(work: Work, rounds: int) -> float:
    """Median of so many runs, after those that warm up."""
    return statistics.median([milliseconds(work) for _ in range(WARM_UP + rounds)][WARM_UP:])


def step_milliseconds(image: Callable[[int], object], steps: int) -> float:
    """A step, from an image of ``steps`` and one of half as many: the difference leaves out what
    an image costs once."""
    fewer = steps // 2
    whole, half = (milliseconds(partial(image, count)) for count in (steps, fewer))
    return (whole - half) / (steps - fewer)


def in_turns(
    one: Callable[[], float], other: Callable[[], float], rounds: int
) -> tuple[float, float, Ratio]:
    """Two measurements in turns, after those that warm up: medians of both, and the ratio
    ``one / other`` of neighbours in time."""
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(WARM_UP + rounds):
        for way in (0, 1) if count % 2 else (1, 0):
            found = (one, other)[way]()
            if count >= WARM_UP:
                times[way].append(found)
    return statistics.median(times[0]), statistics.median(times[1]), paired_ratio(*times)
