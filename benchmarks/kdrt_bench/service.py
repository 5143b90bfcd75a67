"""A pipeline as a service: traces of requests, served as they come, one way or the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue

import kdrt
from kdrt.batching.decoding import Decoding
from kdrt_bench.arrivals import Arrival, Kind, Served, mean_of_mix
from kdrt_bench.jobs import Strict
from kdrt_bench.static_batching import one_by_one, serve_batches, within_rows
from kdrt_bench.statistics import Ratio, paired_ratio

PATIENCE = 0.25
"""Of the mean work of a request: how long static batching lets a request wait for equal ones."""

_PROMPTS = ("a red circle", "two green squares on white", "a small blue star left of a ring")
_GUIDANCE_SCALE = 7.0

Serve = Callable[[Sequence[Arrival], Mapping[Kind, float]], list[Served]]
"""A way to serve: the requests as they come, and seconds of each kind alone."""


class WallClock:
    """Real time, from when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start

    def wait_until(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds - self.now()))


def request_of(kind: Kind, number: int) -> kdrt.Request:
    """The request with that number, which is its seed."""
    return kdrt.Request(
        prompt=_PROMPTS[number % len(_PROMPTS)],
        seed=number,
        sampler=kind.sampler,
        steps=kind.steps,
        guidance_scale=_GUIDANCE_SCALE if kind.guided else 1.0,
    )


def batch_of(kind: Kind, numbers: Sequence[int]) -> kdrt.Request:
    """The requests with these numbers as one, of an image each."""
    prompts = [_PROMPTS[number % len(_PROMPTS)] for number in numbers]
    return kdrt.Request(**{**request_of(kind, 0), "prompt": prompts, "seed": list(numbers)})


def at_load(arrivals: Sequence[Arrival], own: Mapping[Kind, float], load: float) -> list[Arrival]:
    """The same requests, stretched in time so that the load is exact however few they are: what
    they are alone, over the time in which they come, is ``load``.

    Args:
        arrivals: in order.
        own: seconds of each kind alone.
        load: over 0.
    """
    work = sum(own[arrival.kind] for arrival in arrivals)
    stretch = work / (load * arrivals[-1].seconds)
    return [replace(arrival, seconds=arrival.seconds * stretch) for arrival in arrivals]


def end_to_end(rounds: Sequence[Sequence[Served]]) -> list[Served]:
    """The answers of several traces as if each trace had begun when the one before was answered."""
    joined, start = list[Served](), 0.0
    for served in rounds:
        joined += [
            replace(
                one,
                arrival=replace(one.arrival, seconds=one.arrival.seconds + start),
                finished=one.finished + start,
            )
            for one in served
        ]
        start = max((one.finished for one in joined), default=start)
    return joined


def work_alone(pipe: kdrt.Pipeline, kinds: Sequence[Kind], repeats: int) -> dict[Kind, float]:
    """Seconds that a request of each kind takes when nobody else wants anything: the median of
    ``repeats`` rounds, after one that does not count."""
    seconds: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for turn in range(repeats + 1):
        for kind in kinds:
            taken = _seconds(lambda kind=kind: pipe(**request_of(kind, 0)))  # type: ignore[misc]
            if turn > 0:
                seconds[kind].append(taken)
    return {kind: statistics.median(taken) for kind, taken in seconds.items()}


def one_at_a_time(pipe: kdrt.Pipeline) -> Serve:
    """First come, first served, by calls of the pipeline."""

    def serve(trace: Sequence[Arrival], own: Mapping[Kind, float]) -> list[Served]:
        return serve_batches(trace, _calls(pipe, trace), own, WallClock(), most=one_by_one)

    return serve


def static_batches(pipe: kdrt.Pipeline, rows: int) -> Serve:
    """Equal requests together, by calls of the pipeline of at most ``rows`` rows."""

    def serve(trace: Sequence[Arrival], own: Mapping[Kind, float]) -> list[Served]:
        return serve_batches(
            trace,
            _calls(pipe, trace),
            own,
            WallClock(),
            most=within_rows(rows),
            patience=PATIENCE * mean_of_mix(dict(own)),
        )

    return serve


def in_flight(batcher: kdrt.Batcher) -> Serve:
    """All that is there together, step by step."""

    def serve(trace: Sequence[Arrival], own: Mapping[Kind, float]) -> list[Served]:
        clock = WallClock()
        finished: SimpleQueue[Served] = SimpleQueue()

        def answered(arrival: Arrival) -> Callable[[object], None]:
            return lambda _: finished.put(Served(arrival, clock.now(), own[arrival.kind]))

        handles = []
        for number, arrival in enumerate(trace):
            clock.wait_until(arrival.seconds)
            handle = batcher.submit(request_of(arrival.kind, number))
            handle.add_done_callback(answered(arrival))
            handles.append(handle)
        for handle in handles:
            handle.result()  # raises what it failed with
        # Not when the results are there: who waits for one may wake before it is noted.
        return [finished.get() for _ in trace]

    return serve


def decode_beside_ticks(batcher: kdrt.Batcher) -> None:
    """An experiment: have an idle batcher decode finished images in a thread of its own."""
    loop = batcher._loop
    loop._decoding = Decoding(loop._pipe, beside=True)


class LoneRequest(Strict):
    """What a request costs that has the machine for itself.

    Attributes:
        request: which.
        pipeline: median seconds of a call of the pipeline.
        ratio: the batcher's time over the pipeline's.
        quartiles: first and third, of that ratio.
    """

    request: str
    pipeline: float
    ratio: Ratio
    quartiles: tuple[float, float]


def lone_request(
    pipe: kdrt.Pipeline, batcher: kdrt.Batcher, kind: Kind, rounds: int
) -> LoneRequest:
    """Measure it, both ways in every round, the order changing from round to round; a first round
    does not count."""
    request = request_of(kind, 0)
    ways: list[Callable[[], object]] = [
        lambda: pipe(**request),
        lambda: batcher.submit(request).result(),
    ]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for way in (0, 1) if turn % 2 else (1, 0):
            taken = _seconds(ways[way])
            if turn > 0:
                seconds[way].append(taken)
    by_call, in_company = seconds
    ratios = [ours / theirs for ours, theirs in zip(in_company, by_call, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return LoneRequest(
        request=words_of(kind),
        pipeline=statistics.median(by_call),
        ratio=paired_ratio(in_company, by_call),
        quartiles=(low, high),
    )


def words_of(kind: Kind) -> str:
    """``20 dpmpp_2m, guided``."""
    return f"{kind.steps} {kind.sampler}{', guided' if kind.guided else ''}"


def _calls(pipe: kdrt.Pipeline, trace: Sequence[Arrival]) -> Callable[[Sequence[Arrival]], object]:
    """What makes a batch of the requests of a trace."""
    numbers = {arrival: number for number, arrival in enumerate(trace)}
    return lambda batch: pipe(**batch_of(batch[0].kind, [numbers[arrival] for arrival in batch]))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
