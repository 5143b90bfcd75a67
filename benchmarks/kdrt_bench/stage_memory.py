"""Seconds and memory of every stage of an export or of an image, in a process of its own.

Peaks are the kernel's: the most the process had in memory during a stage, mapped files included.
Those are pages that the system takes back when others need room, so what a process had besides is
told too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from kdrt.bundle import open_bundle
from kdrt_bench import memory
from kdrt_bench.jobs import BenchJob, ImageWorkload, Model, Strict
from kdrt_bench.peers import find_peer, load_peer
from kdrt_bench.peers.base import Peer, components_of
from kdrt_bench.stages import StageClock

Result = TypeVar("Result")


class StageRow(Strict):
    """One stage: seconds; bytes in memory at its peak, and those at its end that are no file's.
    None where the system does not tell."""

    stage: str
    seconds: float
    peak: int | None
    own: int | None


class ExportStages:
    """A report of an export (:class:`kdrt_export.report.Report`) that measures its stages."""

    def __init__(self) -> None:
        self.rows: list[StageRow] = []
        self._stage, self._begun = "", 0.0

    def start(self, stage: str) -> None:
        memory.reset_peak()
        self._stage, self._begun = stage, time.perf_counter()

    def done(self, detail: str = "") -> None:
        seconds = time.perf_counter() - self._begun
        self.rows.append(_row(self._stage, seconds))

    def note(self, text: str) -> None: ...


class PeakClock(StageClock):
    """Notes memory too: what there was since the stage before counts, since loading and binding
    belong to the run that they are done for. Where networks are loaded in turn that includes the
    moment before the last one is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int | None] = {}
        self.own: dict[str, int | None] = {}

    def reset(self) -> None:
        super().reset()
        self.peaks.clear()
        self.own.clear()
        memory.reset_peak()

    def end(self, stage: str, begun: float | torch.cuda.Event) -> None:
        super().end(stage, begun)
        peak = memory.peak()
        self.peaks[stage] = None if peak is None else max(peak, self.peaks.get(stage) or 0)
        self.own[stage] = memory.anonymous()
        memory.reset_peak()


def export_rows(source: str, folder: Path, options: dict[str, Any]) -> list[StageRow]:
    """Export a model, and measure it.

    Args:
        source: see :func:`kdrt_export.stage.export`.
        folder: where the bundle goes.
        options: further arguments of an export.
    """
    from kdrt_export.stage import export

    stages = ExportStages()
    export(source, folder, report=stages, **options)
    return stages.rows


def prepare(
    peer: str, options: dict[str, str], model: Model, workload: ImageWorkload, threads: int
) -> None:
    """Have a peer make what it keeps of a model; see :func:`image_rows`.

    Raises:
        PeerUnavailableError: it is not installed, or cannot make the images of this model.
    """
    made = _peer(peer, options, model, workload, threads)
    made.prepare(components_of((workload,), made.bundle))


def image_rows(
    peer: str, options: dict[str, str], model: Model, workload: ImageWorkload, threads: int
) -> list[StageRow]:
    """Load a model and make one image, the first of the process.

    Args:
        peer: a name that ``kdrt_bench.peers.find_peer`` knows.
        options: of it, besides those it always has.
        model: whose images.
        workload: what to make.
        threads: of the processor.
    """
    torch.set_num_threads(threads)
    memory.reset_peak()
    begun = time.perf_counter()
    clock = PeakClock()
    runner = _peer(peer, options, model, workload, threads).generator(workload, clock)
    rows = [_row("load", time.perf_counter() - begun)]
    clock.reset()
    begun = time.perf_counter()
    runner.run()
    whole = time.perf_counter() - begun
    seconds = clock.seconds()
    rows += [
        # A peer with a loop of its own tells its seconds afterwards, and no memory.
        StageRow(stage=stage, seconds=spent, peak=clock.peaks.get(stage), own=clock.own.get(stage))
        for stage, spent in seconds.items()
    ]
    return [*rows, _row("all else", whole - sum(seconds.values()))]


def _peer(
    peer: str, options: dict[str, str], model: Model, workload: ImageWorkload, threads: int
) -> Peer:
    job = BenchJob(
        peer=peer,
        options=options,
        model=model,
        workloads=(workload,),
        threads=threads,
        folder=model.cache,
    )
    bundle = open_bundle(str(model.bundle))
    return load_peer(peer)(job, bundle, {**find_peer(peer).options, **options})


def in_fresh_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """What ``work`` returns in a new Python, in which nothing has been loaded yet.

    Raises:
        Whatever it raises; BrokenProcessPool if the system ended the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _row(stage: str, seconds: float) -> StageRow:
    return StageRow(stage=stage, seconds=seconds, peak=memory.peak(), own=memory.anonymous())
