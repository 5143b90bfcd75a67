"""A row's figures, from what its worker answered."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdrt.common.home import home
from kdrt_bench.conductor import Measured, Outcome
from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.experiment import Experiment, RowPlan
from kdrt_bench.jobs import Forward, ImageWorkload, Server, Timing, Workload
from kdrt_bench.statistics import paired_ratio


def about(measured: Measured, timings: Sequence[Timing], index: int) -> dict[str, object]:
    """What a worker said of itself, and medians of what it said of its runs."""
    ready, finished = measured.ready, measured.finished
    energies = [t.energy for t in timings if t.energy is not None]
    stages = {stage for t in timings for stage in t.stages}
    return {
        "settings": ready.settings,
        "versions": ready.versions,
        "load": ready.load,
        "first_call": ready.first_calls[index] if ready.first_calls else None,
        "memory_loaded": ready.memory_loaded,
        "memory_peak": finished.memory_peak if finished else None,
        "memory_running": finished.memory_running if finished else None,
        "device_memory_peak": finished.device_memory_peak if finished else None,
        "cpu": statistics.median(t.cpu for t in timings),
        "idle_cpu": max(t.idle_cpu for t in timings),
        "faults": sum(t.faults for t in timings),
        "energy": statistics.median(energies) if energies else None,
        "stages": {
            stage: statistics.median(t.stages.get(stage, 0.0) for t in timings)
            for stage in sorted(stages)
        },
    }


def samples_of(timings: Sequence[Timing], *, server: bool = False) -> tuple[float, ...]:
    """Seconds of every run; of a server, of every request, which may be none."""
    if server:
        return tuple(latency for t in timings for latency in t.latencies)
    return tuple(t.seconds for t in timings)


def images_per_second(workload: Workload, timings: Sequence[Timing]) -> float | None:
    """At the median, or over all that a server served."""
    median = statistics.median(t.seconds for t in timings)
    match workload:
        case Forward():
            return None
        case ImageWorkload():
            return workload.batch / median
        case Server():
            return len(samples_of(timings, server=True)) / sum(t.seconds for t in timings)


def speedup(plan: Experiment, index: int, row: RowPlan, outcome: Outcome) -> object | None:
    anchor = outcome.measured.get(plan.anchor)
    if row.label == plan.anchor or anchor is None:
        return None
    ours = samples_of(outcome.measured[row.label].timings[index])
    theirs = samples_of(anchor.timings[index])
    return paired_ratio(theirs, ours) if len(ours) == len(theirs) else None


def portable(sentence: str) -> str:
    """Without the folders of this machine, which mean nothing where a report is read."""
    return sentence.replace(str(home().resolve()), "$KDRT_HOME").replace(str(Path.home()), "~")


def why(error: BenchmarkError) -> dict[str, object]:
    """What a row says that has no figures."""
    return {
        "failed": portable(str(error)),
        "unavailable": isinstance(error, PeerUnavailableError),
    }


def arrays(path: Path) -> list[np.ndarray]:
    """What a worker wrote, in the order of the outputs."""
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in label).strip("-").lower()
