"""In-flight batching on the device of a pipeline: a request alone, several at once, and a stream.

lone      a request by itself, through `kdrt.Batcher` and through the pipeline, in turns
together  N images at once: images a second, and what one tick of them costs
stream    requests of 4 to 50 steps that come at random, against one request at a time
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

import kdrt
from kdrt.batching.handle import Handle
from kdrt.denoise.conditioning_store import ImageShape
from kdrt.request.fields import Request
from kdrt.sampling import Plan
from kdrt_bench.cuda_calls import CALLS, count_calls
from kdrt_bench.statistics import paired_ratio, percentiles

PROMPT = "a red circle on a blue background"
AT_ONCE = (1, 2, 4, 8)
STEPS = (4, 50)
"""Fewest and most of the requests of a stream."""

LOAD = 0.9
"""How much of one request at a time the requests of a stream ask for."""

_WARM_UP = 2
_COUNTED = 4


@dataclass(frozen=True)
class Lone:
    """A request by itself: milliseconds, and the median ratio of neighbours in time."""

    batcher: float
    pipeline: float
    ratio: float


@dataclass(frozen=True)
class Together:
    """N images at once.

    Attributes:
        images: N.
        rows: of the UNet.
        per_second: images, from the submission of all to the last one's pixels.
        tick: milliseconds, with nothing enqueued before it.
        host: microseconds in which the host enqueues a tick; 0 on a CPU, where it computes it.
        launches, graph_launches, waits: of the host, a tick; 0 on a CPU.
    """

    images: int
    rows: int
    per_second: float
    tick: float
    host: float = 0.0
    launches: float = 0.0
    graph_launches: float = 0.0
    waits: float = 0.0


@dataclass(frozen=True)
class Latencies:
    """Of several requests, milliseconds from the arrival to the pixels."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """From those of each request."""
        found = percentiles([1e3 * each for each in seconds])
        return cls(found.p50, found.p99)


@dataclass(frozen=True)
class Stream:
    """Requests that come at random."""

    requests: int
    batcher: Latencies
    one_at_a_time: Latencies


@dataclass(frozen=True)
class InFlightRows:
    """All figures of an engine."""

    lone: Lone
    together: tuple[Together, ...]
    stream: Stream | None


def measure_in_flight(
    pipe: kdrt.Pipeline,
    steps: int,
    rounds: int,
    requests: int,
    *,
    at_once: Sequence[int] | None = None,
) -> InFlightRows:
    """Measure a pipeline.

    Args:
        steps: of an image, except in the stream.
        rounds: medians are of so many.
        requests: in the stream; 0 leaves it out.
        at_once: numbers of images; ``AT_ONCE`` if there are none.
    """
    at_once = AT_ONCE if at_once is None else at_once
    request: Request = {"prompt": PROMPT, "steps": steps, "seed": 7}
    _, most = pipe.denoising.unet.limits().get("B", (1, 2 * max(at_once)))
    with kdrt.Batcher(pipe) as batcher:
        lone = _lone(pipe, batcher, request, rounds)
        together = tuple(
            _together(pipe, batcher, request, images, rounds)
            for images in at_once
            if 2 * images <= most
        )
        stream = _stream(pipe, batcher, request, requests) if requests else None
    return InFlightRows(lone, together, stream)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _lone(pipe: kdrt.Pipeline, batcher: kdrt.Batcher, request: Request, rounds: int) -> Lone:
    ways: list[Callable[[], object]] = [
        lambda: batcher.submit(request, output_type="np").result(),
        lambda: pipe.generate(request, output_type="np"),
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(_WARM_UP + rounds):
        for way in (0, 1) if count % 2 else (1, 0):
            seconds = _seconds(ways[way])
            if count >= _WARM_UP:
                times[way].append(1e3 * seconds)
    return Lone(
        statistics.median(times[0]), statistics.median(times[1]), paired_ratio(*times).median
    )


def _together(
    pipe: kdrt.Pipeline,
    batcher: kdrt.Batcher,
    request: Request,
    images: int,
    rounds: int,
) -> Together:
    def all_at_once() -> None:
        handles = [
            batcher.submit({**request, "seed": seed}, output_type="np") for seed in range(images)
        ]
        for handle in handles:
            handle.result()

    times = [_seconds(all_at_once) for _ in range(_WARM_UP + rounds)][_WARM_UP:]
    return _ticks(pipe, request, images, rounds, images / statistics.median(times))


def _ticks(
    pipe: kdrt.Pipeline, request: Request, images: int, rounds: int, per_second: float
) -> Together:
    """Ticks of so many images that are at the same step, without a batcher."""
    needed = _WARM_UP + 2 * rounds + 3 * _COUNTED
    job = pipe.resolve({**request, "steps": needed}, "latent")
    run = pipe.prepare(job, pipe.encode(job))
    assert isinstance(run.plan, Plan)
    _, tokens, _ = run.inputs.positive.prompt.encoder_hidden_states.shape
    height, width = run.latents.shape[-2:]
    rows = images * run.inputs.parts.rows
    on_cuda = run.latents.is_cuda
    with pipe.cuda_stream.active():
        room = pipe.denoising.in_flight(ImageShape(height, width, tokens), images)
        noise = run.noise.draw(run.plan.slots) if run.plan.slots else None
        slots = [room.admit(run.plan, run.latents, noise, run.inputs) for _ in range(images)]

        def ticks(count: int = 1) -> None:
            for _ in range(count):
                room.tick(slots)

        def wait() -> None:
            if on_cuda:
                torch.cuda.current_stream().synchronize()

        ticks(_WARM_UP)
        wait()
        times, host = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            ticks()
            host.append(1e6 * (time.perf_counter() - started))
            wait()
            times.append(1e3 * (time.perf_counter() - started))
        counts = dict.fromkeys(CALLS, 0.0)
        if on_cuda:
            # The difference leaves out what the profiler does at its beginning and end.
            few, many = (count_calls(partial(ticks, n)) for n in (_COUNTED, 2 * _COUNTED))
            counts = {name: (many[name] - few[name]) / _COUNTED for name in CALLS}
        room.release()
    return Together(
        images,
        rows,
        per_second,
        statistics.median(times),
        statistics.median(host) if on_cuda else 0.0,
        *counts.values(),
    )


def _stream(pipe: kdrt.Pipeline, batcher: kdrt.Batcher, request: Request, count: int) -> Stream:
    source = random.Random(0)
    requests = [
        cast(Request, {**request, "seed": seed, "steps": source.randint(*STEPS)})
        for seed in range(count)
    ]
    own = [_seconds(partial(pipe.generate, each, output_type="np")) for each in requests]
    rate = LOAD / statistics.mean(own)
    arrivals = list(itertools.accumulate(source.expovariate(rate) for _ in requests))
    return Stream(
        count,
        Latencies.of(_submitted(batcher, requests, arrivals)),
        Latencies.of(_queued(own, arrivals)),
    )


def _queued(own: Sequence[float], arrivals: Sequence[float]) -> list[float]:
    """Latencies of one request at a time, first come, first served, from the time that each took
    by itself: what a queue would measure, without waiting for it."""
    latencies, free = [], 0.0
    for seconds, arrival in zip(own, arrivals, strict=True):
        free = max(free, arrival) + seconds
        latencies.append(free - arrival)
    return latencies


def _submitted(
    batcher: kdrt.Batcher, requests: Sequence[Request], arrivals: Sequence[float]
) -> list[float]:
    """Latencies of requests that are submitted when they arrive."""
    started = time.perf_counter()
    handles: list[tuple[Handle[Any], Future[float]]] = []
    for request, arrival in zip(requests, arrivals, strict=True):
        time.sleep(max(0.0, started + arrival - time.perf_counter()))
        end: Future[float] = Future()
        handles.append((batcher.submit(request, output_type="np"), end))
        handles[-1][0].add_done_callback(partial(_note, end))
    latencies = []
    for (handle, end), arrival in zip(handles, arrivals, strict=True):
        handle.result()
        latencies.append(end.result() - started - arrival)
    return latencies


def _note(end: Future[float], _: object) -> None:
    end.set_result(time.perf_counter())
