"""Runs the experiments of a suite and makes their report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kdrt_bench.cold import cold_starts
from kdrt_bench.conductor import (
    Outcome,
    Start,
    Worker,
    compare,
    compare_apart,
    prepare,
)
from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.experiment import Experiment, RowPlan
from kdrt_bench.figures import (
    about,
    arrays,
    file_name,
    images_per_second,
    samples_of,
    speedup,
    why,
)
from kdrt_bench.jobs import BenchJob, Forward, ImageWorkload, Server
from kdrt_bench.likeness import likeness
from kdrt_bench.machine import Peak, describe, measure_peak
from kdrt_bench.peers import find_peer, info_of
from kdrt_bench.report import ExperimentReport, Report, Row
from kdrt_bench.statistics import percentiles

Watch = Callable[[str], None]
_STARTUP_PATIENCE = 300.0


class Measurement:
    """Runs experiments, one after the other.

    Args:
        suite: its name, for the report.
        threads: of every row.
        folder: where images and outputs go.
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
        self._prepared: dict[str, BenchmarkError | None] = {}
        self._gflop: dict[str, float] = {}
        self._begun = time.monotonic()
        self._started = _now()
        self._anchors: dict[str, float] = {}

    def report(self, experiments: Sequence[Experiment]) -> Report:
        """All of it."""
        self._watch("the machine's own peak")
        peak = measure_peak(self.threads)
        machine = describe(peak)
        done = []
        for each in experiments:
            facts = {"started": _now(), "kdrt": machine.kdrt, "load": machine.load}
            done.append(self.experiment(each, peak).model_copy(update=facts))
        used = dict.fromkeys(row.peer for each in done for row in each.rows)
        shutil.rmtree(self._outputs, ignore_errors=True)
        return Report(
            suite=self.suite,
            started=self._started,
            seconds=time.monotonic() - self._begun,
            threads=self.threads,
            machine=machine,
            peers={name: info_of(name).about for name in used},
            experiments=tuple(done),
        )

    def experiment(self, plan: Experiment, peak: Peak) -> ExperimentReport:
        """One of them. A row that fails is a row that says why."""
        if plan.kind == "startup":
            return self._report(
                plan, (None,), cold_starts(plan, self._unavailable(plan), self._watch)
            )
        if plan.kind == "server":
            plan = self._with_rate(plan)
        jobs = {row.label: self._job(plan, row) for row in plan.rows}
        failed: dict[str, BenchmarkError] = dict(self._unavailable(plan))
        gflop = self._prepare(plan, jobs, failed)
        able = {label: job for label, job in jobs.items() if label not in failed}
        outcome = self._compared(plan, able)
        outcome.failed.update(failed)
        rows = tuple(
            self._row(plan, index, row, outcome, gflop[index], peak)
            for index in range(len(plan.workloads))
            for row in plan.rows
        )
        self._remember_anchor(plan, rows)
        return self._report(plan, gflop, rows)

    def _compared(self, plan: Experiment, jobs: dict[str, BenchJob]) -> Outcome:
        def watch(what: str) -> None:
            self._watch(f"{plan.key}: {what}")

        if plan.apart:
            return compare_apart(jobs, plan.rounds, start=self._start, watch=watch)
        discard = 0 if plan.kind == "server" else plan.discard
        return compare(jobs, plan.rounds, start=self._start, watch=watch, discard=discard)

    @property
    def _outputs(self) -> Path:
        return self.folder / ".outputs"

    def _job(self, plan: Experiment, row: RowPlan) -> BenchJob:
        return BenchJob(
            peer=row.peer,
            options=row.options,
            model=plan.model,
            workloads=tuple(map(row.workload, plan.workloads)),
            threads=self.threads,
            folder=self._outputs / plan.key / file_name(row.label),
            first_call=plan.first_call,
            warmups=plan.warmups,
        )

    def _unavailable(self, plan: Experiment) -> dict[str, PeerUnavailableError]:
        failed = {}
        for row in plan.rows:
            try:
                find_peer(row.peer)
            except PeerUnavailableError as error:
                failed[row.label] = error
        return failed

    def _prepare(
        self, plan: Experiment, jobs: dict[str, BenchJob], failed: dict[str, BenchmarkError]
    ) -> tuple[float | None, ...]:
        """Have every row prepare once, in a process of its own; the first eager one counts the
        operations of workloads that are new."""
        known = [f"{plan.model.name} {workload}" for workload in plan.workloads]
        new = any(each not in self._gflop for each in known)
        counter = next((r.label for r in plan.rows if new and r.peer == "eager"), None)
        for label, job in jobs.items():
            if label in failed:
                continue
            counts = label == counter
            networks = sorted({w.component for w in job.workloads if isinstance(w, Forward)})
            key = f"{job.peer} {job.options} {job.model.name} {networks}"
            if key in self._prepared and not counts:
                if (error := self._prepared[key]) is not None:
                    failed[label] = error
                continue
            outcome = prepare(
                {label: job.model_copy(update={"count_flops": counts})}, self._start, self._watch
            )
            failed.update(outcome.failed)
            self._prepared[key] = outcome.failed.get(label)
            if counts and label in outcome.prepared:
                counted = (flops / 1e9 for flops in outcome.prepared[label].flops)
                self._gflop.update(zip(known, counted, strict=True))
        return tuple(self._gflop.get(each) for each in known)

    def _row(
        self,
        plan: Experiment,
        index: int,
        row: RowPlan,
        outcome: Outcome,
        gflop: float | None,
        peak: Peak,
    ) -> Row:
        info = info_of(row.peer)
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
            reason = outcome.failed.get(row.label, BenchmarkError("it was not measured"))
            return bare.model_copy(update=why(reason))
        timings = measured.timings[index]
        server = plan.kind == "server"
        samples = samples_of(timings, server=server)
        if not samples:
            return bare.model_copy(update={"failed": "no request arrived in time"})
        seconds = percentiles(samples)
        achieved = None if gflop is None or server else gflop / seconds.p50
        finished = measured.finished
        workload = plan.workloads[index]
        return bare.model_copy(
            update={
                **about(measured, timings, index),
                "samples": samples,
                "seconds": seconds,
                "images_per_second": images_per_second(workload, timings),
                "gflops": achieved,
                "of_peak": None if achieved is None else achieved / peak.gflops,
                "likeness": self._likeness(plan, index, row, outcome),
                "speedup": None if server else speedup(plan, index, row, outcome),
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
            arrays(self._outputs / plan.key / file_name(label) / f"{index}.npz")
            for label in (row.label, plan.anchor)
        )
        return likeness(ours, theirs, images=not isinstance(plan.workloads[index], Forward))

    def _image(self, plan: Experiment, index: int, row: RowPlan) -> str | None:
        made = self._outputs / plan.key / file_name(row.label) / f"{index}.png"
        # Random weights make noise: half a megabyte that shows nothing.
        if plan.model.random_weights or not made.is_file():
            return None
        name = f"images/{plan.key}-{index}-{file_name(row.label)}.png"
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, self.folder / name)
        return name

    def _with_rate(self, plan: Experiment) -> Experiment:
        """Requests arrive as fast as a share of what the anchor was seen to serve."""
        if plan.anchor not in self._anchors:
            raise BenchmarkError("the Server scenario needs the time of an image first")
        rate = plan.load / self._anchors[plan.anchor]
        return replace(
            plan,
            workloads=tuple(
                Server(generation=w, rate=rate, requests=plan.requests)
                for w in plan.workloads
                if isinstance(w, ImageWorkload)
            ),
        )

    def _remember_anchor(self, plan: Experiment, rows: Sequence[Row]) -> None:
        for row in rows:
            if plan.key == "image" and row.label == plan.anchor and row.seconds:
                self._anchors[plan.anchor] = row.seconds.p50

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
