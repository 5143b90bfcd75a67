"""Where the time of a tick of `kdrt.Batcher` goes, by its parts and by the rows of the UNet run."""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kdrt
from kdrt.batching.loop import BatchingLoop
from kdrt.batching.scheduler import Scheduler
from kdrt.denoise.bound_unet import UNetRows
from kdrt.denoise.flight_states import EagerStates
from kdrt.denoise.in_flight import InFlight
from kdrt.denoise.row_denoiser import RowDenoiser
from kdrt.pipeline.encoding import conditioning_length
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.job import latent_shape
from kdrt_bench.arrivals import Kind
from kdrt_bench.jobs import Strict
from kdrt_bench.service import request_of

_PARTS: tuple[tuple[type, str, str], ...] = (
    (Scheduler, "next_tick", "scheduler"),
    (BatchingLoop, "_admit", "taking requests in: text, noise, slots"),
    (InFlight, "_bound_for", "binding a size"),
    (RowDenoiser, "take", "gathering conditioning"),
    (UNetRows, "run", "UNet"),
    (RowDenoiser, "denoise", "scaling and guidance"),
    (EagerStates, "tick", "samplers"),
    (BatchingLoop, "_tick", "the loop itself"),
    (Pipeline, "finish", "decoding"),
)


class TickParts(Strict):
    """Of some requests made together.

    Attributes:
        ticks: how many.
        images: that ran in a tick, in the mean.
        milliseconds: a tick, by part, without what is listed as another part.
    """

    ticks: int
    images: float
    milliseconds: dict[str, float]


class Stopwatch:
    """Adds up the seconds of calls, each without the timed calls inside of it.

    Attributes:
        seconds: by part.
        calls: by part.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._clock = clock
        self._local = threading.local()

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, its calls counted as ``part``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner: list[float] = self._local.__dict__.setdefault("inner", [])
            inner.append(0.0)
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                taken = self._clock() - start
                own = taken - inner.pop()
                if inner:
                    inner[-1] += taken
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                self.calls[part] = self.calls.get(part, 0) + 1

        return call

    @contextmanager
    def watching(self, parts: Sequence[tuple[type, str, str]]) -> Iterator[None]:
        """Time these methods: of a class, by name, as a part."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
        for owner, name, part in parts:
            setattr(owner, name, self.timed(getattr(owner, name), part))
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def seconds_by_rows(pipe: kdrt.Pipeline, rows: Sequence[int], repeats: int) -> dict[int, float]:
    """Median seconds of a UNet run with so many rows, in turns, at the model's own size; those that
    the engine does not allow are left out. Nothing else may use the pipeline meanwhile."""
    job = pipe.resolve(kdrt.Request(prompt=""), "pil")
    _, height, width = latent_shape(pipe.bundle.manifest, job.height, job.width)
    tokens = conditioning_length(pipe.prompt_encoder, job, doubled=False)
    unet = pipe.denoising.unet
    _, most = unet.limits().get("B", (1, max(rows)))
    runs = {
        count: UNetRows(unet, rows=count, height=height, width=width, tokens=tokens).run
        for count in rows
        if count <= most
    }
    taken: dict[int, list[float]] = {count: [] for count in runs}
    for turn in range(repeats + 1):
        for count, run in runs.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                taken[count].append(time.perf_counter() - start)
    return {count: statistics.median(seconds) for count, seconds in taken.items()}


def tick_parts(batcher: kdrt.Batcher, kinds: Sequence[Kind]) -> TickParts:
    """Make a request of each kind, all submitted at once, and see where the time goes."""
    watch = Stopwatch()
    with watch.watching(_PARTS):
        handles = [batcher.submit(request_of(kind, number)) for number, kind in enumerate(kinds)]
        for handle in handles:
            handle.result()
    ticks = watch.calls["the loop itself"]
    return TickParts(
        ticks=ticks,
        images=sum(kind.steps for kind in kinds) / ticks,
        milliseconds={part: 1000 * watch.seconds.get(part, 0.0) / ticks for _, _, part in _PARTS},
    )
