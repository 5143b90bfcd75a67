"""Seconds and memory of every stage of an export or of an image, in a process of its own.

Peaks are the kernel's: the most the process had in memory during a stage, mapped files included.
Those are pages that the system takes back when others need room, so what a process had besides is
told too.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from kdrt.bundle import open_bundle
from kdrt_bench import memory
from kdrt_bench.jobs import BenchJob, ImageWorkload, Model, Strict
from kdrt_bench.peers import load_peer
from kdrt_bench.stages import StageClock


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


def image_rows(
    peer: str, options: dict[str, str], model: Model, workload: ImageWorkload, threads: int
) -> list[StageRow]:
    """Load a model and make one image, the first of the process.

    Args:
        peer: a key of ``kdrt_bench.peers.PEERS``.
        options: of it.
        model: whose images.
        workload: what to make.
        threads: of the processor.
    """
    torch.set_num_threads(threads)
    memory.reset_peak()
    begun = time.perf_counter()
    job = BenchJob(
        peer=peer,
        options=options,
        model=model,
        workloads=(workload,),
        threads=threads,
        folder=model.cache,
    )
    clock = PeakClock()
    runner = load_peer(peer)(job, open_bundle(str(model.bundle)), options).generator(
        workload, clock
    )
    rows = [_row("load", time.perf_counter() - begun)]
    clock.reset()
    begun = time.perf_counter()
    runner.run()
    whole = time.perf_counter() - begun
    seconds = clock.seconds()
    rows += [
        StageRow(stage=stage, seconds=spent, peak=clock.peaks[stage], own=clock.own[stage])
        for stage, spent in seconds.items()
    ]
    return [*rows, _row("all else", whole - sum(seconds.values()))]


def in_fresh_process(work: Any, *arguments: Any) -> list[StageRow]:
    """What ``work`` returns in a new Python, in which nothing has been loaded yet.

    Raises:
        Whatever it raises; BrokenProcessPool if the system ended the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rows: list[StageRow] = pool.submit(work, *arguments).result()
    return rows


def _row(stage: str, seconds: float) -> StageRow:
    return StageRow(stage=stage, seconds=seconds, peak=memory.peak(), own=memory.anonymous())
