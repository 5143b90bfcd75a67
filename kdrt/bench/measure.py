"""Runs the experiments of a suite and makes their report."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kdrt.bench.conductor import (
    Measured,
    Outcome,
    Start,
    Worker,
    compare,
    environment,
    prepare,
)
from kdrt.bench.errors import BenchmarkError, PeerUnavailable
from kdrt.bench.jobs import Forward, Generation, Job, Server, Timing, Workload
from kdrt.bench.likeness import likeness
from kdrt.bench.machine import Peak, describe, measure_peak
from kdrt.bench.peers import PEERS, find_peer
from kdrt.bench.report import ExperimentReport, Report, Row
from kdrt.bench.statistics import paired_ratio, percentiles
from kdrt.bench.suites import Experiment, RowPlan

Watch = Callable[[str], None]
_STARTUP_PATIENCE = 300.0


class Measurement:
    """Runs experiments, one after the other.

    Args:
        suite: its name, for the report.
        threads: of every row.
        folder: where pictures and outputs go.
        watch: told what is going on.
        start: makes a worker of a job.
    """

    def __init__(
        self,
        suite: str,
        threads: int,
        folder: Path,
        *,
        watch: Watch = lambda _: None,
        start: Start = Worker,
    ) -> None:
        self.suite, self.threads, self.folder = suite, threads, folder
        self._watch, self._start = watch, start
        self._prepared: dict[str, str | None] = {}
        self._begun = time.monotonic()
        self._started = datetime.now(UTC)
        self._anchors: dict[str, float] = {}

    def report(self, experiments: Sequence[Experiment]) -> Report:
        """All of it."""
        self._watch("the machine's own peak")
        peak = measure_peak(self.threads)
        machine = describe(peak)
        done = [self.experiment(each, peak) for each in experiments]
        used = {row.peer for each in done for row in each.rows}
        shutil.rmtree(self._outputs, ignore_errors=True)
        return Report(
            suite=self.suite,
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._begun,
            threads=self.threads,
            machine=machine,
            peers={name: info.about for name, info in PEERS.items() if name in used},
            experiments=tuple(done),
        )

    def experiment(self, plan: Experiment, peak: Peak) -> ExperimentReport:
        """One of them. A row that fails is a row that says why."""
        if plan.kind == "startup":
            return self._report(plan, (None,), self._startup(plan))
        if plan.kind == "server":
            plan = self._with_rate(plan)
        jobs = {row.label: self._job(plan, row) for row in plan.rows}
        failed = self._unavailable(plan)
        gflop = self._prepare(plan, jobs, failed)
        able = {label: job for label, job in jobs.items() if label not in failed}
        outcome = compare(
            able,
            plan.rounds,
            start=self._start,
            watch=lambda what: self._watch(f"{plan.key}: {what}"),
            discard=0 if plan.kind == "server" else 1,
        )
        outcome.failed.update(failed)
        rows = tuple(
            self._row(plan, index, row, outcome, gflop[index], peak)
            for index in range(len(plan.workloads))
            for row in plan.rows
        )
        self._remember_anchor(plan, rows)
        return self._report(plan, gflop, rows)

    @property
    def _outputs(self) -> Path:
        return self.folder / ".outputs"

    def _job(self, plan: Experiment, row: RowPlan) -> Job:
        return Job(
            peer=row.peer,
            options=row.options,
            model=plan.model,
            workloads=tuple(map(row.workload, plan.workloads)),
            threads=self.threads,
            folder=self._outputs / plan.key / _file_name(row.label),
            warmups=plan.warmups,
        )

    def _unavailable(self, plan: Experiment) -> dict[str, str]:
        failed = {}
        for row in plan.rows:
            try:
                find_peer(row.peer)
            except PeerUnavailable as error:
                failed[row.label] = str(error)
        return failed

    def _prepare(
        self, plan: Experiment, jobs: dict[str, Job], failed: dict[str, str]
    ) -> tuple[float | None, ...]:
        """Have every row prepare once, in a process of its own; the first eager one counts the
        operations of the workloads too."""
        gflop: tuple[float | None, ...] = (None,) * len(plan.workloads)
        counter = next((r.label for r in plan.rows if r.peer == "eager"), None)
        for label, job in jobs.items():
            if label in failed:
                continue
            counts = label == counter
            networks = sorted({w.component for w in job.workloads if isinstance(w, Forward)})
            key = f"{job.peer} {job.options} {job.model.name} {networks}"
            if key in self._prepared and not counts:
                if (sentence := self._prepared[key]) is not None:
                    failed[label] = sentence
                continue
            outcome = prepare(
                {label: job.model_copy(update={"count_flops": counts})}, self._start, self._watch
            )
            failed.update(outcome.failed)
            self._prepared[key] = outcome.failed.get(label)
            if counts and label in outcome.prepared:
                gflop = tuple(flops / 1e9 for flops in outcome.prepared[label].flops)
        return gflop

    def _row(
        self,
        plan: Experiment,
        index: int,
        row: RowPlan,
        outcome: Outcome,
        gflop: float | None,
        peak: Peak,
    ) -> Row:
        info = PEERS[row.peer]
        bare = Row(
            label=row.label,
            peer=row.peer,
            title=info.title if row.label == row.peer else row.label,
            lossy=info.lossy,
            options=row.options,
            point=plan.points[index],
        )
        measured = outcome.measured.get(row.label)
        if measured is None or not measured.timings[index]:
            reason = outcome.failed.get(row.label, "it was not measured")
            return bare.model_copy(update={"failed": reason})
        timings = measured.timings[index]
        samples = _samples(timings)
        seconds = percentiles(samples)
        server = plan.kind == "server"
        achieved = None if gflop is None or server else gflop / seconds.p50
        finished = measured.finished
        workload = plan.workloads[index]
        return bare.model_copy(
            update={
                **_about(measured, timings, index),
                "samples": samples,
                "seconds": seconds,
                "images_per_second": _images_per_second(workload, timings),
                "gflops": achieved,
                "of_peak": None if achieved is None else achieved / peak.gflops,
                "likeness": self._likeness(plan, index, row, outcome),
                "speedup": None if server else _speedup(plan, index, row, outcome),
                "image": self._image(plan, index, row),
                "calls": finished.calls[index] if finished and finished.calls else {},
            }
        )

    def _likeness(
        self, plan: Experiment, index: int, row: RowPlan, outcome: Outcome
    ) -> object | None:
        if row.label == plan.anchor or plan.anchor not in outcome.measured:
            return None
        ours, theirs = (
            _arrays(self._outputs / plan.key / _file_name(label) / f"{index}.npz")
            for label in (row.label, plan.anchor)
        )
        return likeness(ours, theirs, pictures=not isinstance(plan.workloads[index], Forward))

    def _image(self, plan: Experiment, index: int, row: RowPlan) -> str | None:
        made = self._outputs / plan.key / _file_name(row.label) / f"{index}.png"
        if not made.is_file():
            return None
        name = f"images/{plan.key}-{index}-{_file_name(row.label)}.png"
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, self.folder / name)
        return name

    def _with_rate(self, plan: Experiment) -> Experiment:
        """Requests arrive as fast as a share of what the anchor was seen to serve."""
        if plan.anchor not in self._anchors:
            raise BenchmarkError("the Server scenario needs the time of a picture first")
        rate = plan.load / self._anchors[plan.anchor]
        return replace(
            plan,
            workloads=tuple(
                Server(generation=w, rate=rate, requests=plan.requests)
                for w in plan.workloads
                if isinstance(w, Generation)
            ),
        )

    def _remember_anchor(self, plan: Experiment, rows: Sequence[Row]) -> None:
        for row in rows:
            if plan.key == "picture" and row.label == plan.anchor and row.seconds:
                self._anchors[plan.anchor] = row.seconds.p50

    def _startup(self, plan: Experiment) -> tuple[Row, ...]:
        marks: dict[str, list[dict[str, float]]] = {row.label: [] for row in plan.rows}
        failed = self._unavailable(plan)
        for turn in range(-1, plan.rounds):
            for row in plan.rows:
                if row.label in failed:
                    continue
                self._watch(f"{plan.key}: {row.label}: run {turn + 1} of {plan.rounds}")
                try:
                    seconds = started_up(plan, row)
                except BenchmarkError as error:
                    failed[row.label] = str(error)
                    continue
                if turn >= 0:
                    marks[row.label].append(seconds)
        anchor = [sum(each.values()) for each in marks[plan.anchor]]
        return tuple(_startup_row(row, marks[row.label], failed, anchor) for row in plan.rows)

    def _report(
        self, plan: Experiment, gflop: tuple[float | None, ...], rows: tuple[Row, ...]
    ) -> ExperimentReport:
        return ExperimentReport(
            key=plan.key,
            title=plan.title,
            question=plan.question,
            scenario=plan.scenario,
            kind=plan.kind,
            model=plan.model.name,
            anchor=plan.anchor,
            axis=plan.axis,
            points=plan.points,
            workloads=tuple(w.model_dump(mode="json") for w in plan.workloads),
            gflop=gflop,
            rows=rows,
        )


def _about(measured: Measured, timings: Sequence[Timing], index: int) -> dict[str, object]:
    """What a worker said of itself, and medians of what it said of its runs."""
    ready, finished = measured.ready, measured.finished
    energies = [t.energy for t in timings if t.energy is not None]
    stages = {stage for t in timings for stage in t.stages}
    return {
        "settings": ready.settings,
        "versions": ready.versions,
        "load": ready.load,
        "first_call": ready.first_calls[index],
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


def _samples(timings: Sequence[Timing]) -> tuple[float, ...]:
    latencies = [latency for t in timings for latency in t.latencies]
    return tuple(latencies or [t.seconds for t in timings])


def _images_per_second(workload: Workload, timings: Sequence[Timing]) -> float | None:
    median = statistics.median(t.seconds for t in timings)
    match workload:
        case Forward():
            return None
        case Generation():
            return workload.batch / median
        case Server():
            return len(_samples(timings)) / sum(t.seconds for t in timings)


def _speedup(plan: Experiment, index: int, row: RowPlan, outcome: Outcome) -> object | None:
    anchor = outcome.measured.get(plan.anchor)
    if row.label == plan.anchor or anchor is None:
        return None
    ours = _samples(outcome.measured[row.label].timings[index])
    theirs = _samples(anchor.timings[index])
    return paired_ratio(theirs, ours) if len(ours) == len(theirs) else None


def started_up(plan: Experiment, row: RowPlan) -> dict[str, float]:
    """Seconds by stage of one cold start; see :mod:`kdrt.bench.startup`."""
    command = [sys.executable, "-m", "kdrt.bench.startup", row.peer, str(plan.model.bundle)]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, plan.model.source, repr(begun)],
            capture_output=True,
            text=True,
            check=True,
            timeout=_STARTUP_PATIENCE,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError("no picture after 300 seconds") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"it ended with exit code {error.returncode}: {last}") from None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _startup_row(
    row: RowPlan,
    marks: Sequence[dict[str, float]],
    failed: dict[str, str],
    anchor: Sequence[float],
) -> Row:
    info = PEERS[row.peer]
    bare = Row(label=row.label, peer=row.peer, title=info.title)
    if row.label in failed or not marks:
        return bare.model_copy(update={"failed": failed.get(row.label, "it was not measured")})
    samples = tuple(sum(each.values()) for each in marks)
    compared = anchor is not samples and len(anchor) == len(samples) and tuple(anchor) != samples
    return bare.model_copy(
        update={
            "samples": samples,
            "seconds": percentiles(samples),
            "stages": {s: statistics.median(m[s] for m in marks) for s in marks[0]},
            "speedup": paired_ratio(anchor, samples) if compared else None,
        }
    )


def _arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label).strip("-").lower()
