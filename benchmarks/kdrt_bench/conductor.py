"""Keeps processes alive and lets one run at a time.

Every row is a fresh process. Rows that are compared load first, then take turns, A B A B: what the
machine does besides meets all of them alike, and each pair of neighbours is a comparison.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.jobs import BenchJob, Command, Failed, Finished, Ready, Timing

WORKER = (sys.executable, "-m", "kdrt_bench.worker")
PATIENCE = 1800.0
"""Seconds until a worker that says nothing is given up."""

SETTLE = 0.1
"""Seconds between turns: threads that spin a while after their work are then at rest."""

_TAIL = 12
Answer = TypeVar("Answer", bound=BaseModel)
Watch = Callable[[str], None]


@dataclass
class Measured:
    """What one worker answered: its timings by workload, round after round."""

    ready: Ready
    timings: list[list[Timing]]
    finished: Finished | None = None


@dataclass
class Outcome:
    """By row: what was measured or prepared, or the error that says why it was not."""

    measured: dict[str, Measured] = field(default_factory=dict)
    prepared: dict[str, Finished] = field(default_factory=dict)
    failed: dict[str, BenchmarkError] = field(default_factory=dict)

    def give_up(self, name: str, error: BenchmarkError) -> None:
        """A row drops out, with whatever was measured of it."""
        self.failed[name] = error
        self.measured.pop(name, None)


def environment() -> dict[str, str]:
    """This process's, with the packages of kdrt that this process has: those it was installed
    with, or those of a checkout."""
    roots = []
    for package in ("kdrt", "kdrt_export", "kdrt_engines"):
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots.append(str(Path(spec.submodule_search_locations[0]).resolve().parent))
    before = os.environ.get("PYTHONPATH")
    paths = [*dict.fromkeys(roots), *([before] if before else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Worker:
    """A process that runs one job, and nothing unless told to.

    Args:
        job: what it is for.
        command: how to start it.
        variables: its environment; None is :func:`environment`.
        patience: seconds to wait for an answer.

    Raises:
        BenchmarkError: from every method: the process died, gave up or fell silent.
    """

    def __init__(
        self,
        job: BenchJob,
        command: Sequence[str] = WORKER,
        variables: dict[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        # In a session of its own, Ctrl-C reaches it through us, with all processes it has started.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=environment() if variables is None else variables,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(job)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> Ready:
        """Wait until it is loaded and warm."""
        return self._answer(Ready)

    def run(self, workload: int) -> Timing:
        """Have it run a workload once."""
        self._send(Command(run=workload))
        return self._answer(Timing)

    def finish(self) -> Finished:
        """Have it write its outputs and end."""
        self._send(Command(finish=True))
        return self.prepared()

    def prepared(self) -> Finished:
        """Wait until a job that only prepares is done."""
        finished = self._answer(Finished)
        self._process.wait(self._patience)
        return finished

    def stop(self) -> None:
        """End it now, with whatever it has started."""
        # The group outlives its leader where a compiler of the worker's is still running.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # closed by stop()
            pass
        self._lines.put(None)

    def _send(self, message: BaseModel) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message.model_dump_json() + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is dead; the answer that does not come says so

    def _answer(self, kind: type[Answer]) -> Answer:
        try:
            line = self._lines.get(timeout=self._patience)
        except queue.Empty:
            raise BenchmarkError(
                f"the worker said nothing for {self._patience:.0f} seconds and was stopped"
            ) from None
        if line is None:
            raise BenchmarkError(self._last_words())
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            raise self._refusal(line) from None

    def _refusal(self, line: str) -> BenchmarkError:
        try:
            failed = Failed.model_validate_json(line)
        except ValidationError:
            return BenchmarkError(f"the worker answered what is no answer: {line.strip()[:200]}")
        if failed.known:
            kind = PeerUnavailableError if failed.unavailable else BenchmarkError
            return kind(" ".join(failed.failed.split()))
        self._process.wait(self._patience)
        return BenchmarkError(self._last_words())

    def _last_words(self) -> str:
        code = self._process.wait(self._patience)
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        if -code == signal.SIGKILL:
            cause += ", as when memory runs out"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()[-_TAIL:]
        return f"the worker died ({cause})" + (f": {lines[-1].strip()}" if lines else "")


Start = Callable[[BenchJob], Worker]


def prepare(
    jobs: dict[str, BenchJob], start: Start = Worker, watch: Watch = lambda _: None
) -> Outcome:
    """Let each row make what it keeps, one after the other, in processes that end."""
    outcome = Outcome()
    for name, job in jobs.items():
        watch(f"{name}: prepare")
        try:
            with _started(job.model_copy(update={"prepare": True}), start) as worker:
                outcome.prepared[name] = worker.prepared()
        except BenchmarkError as error:
            outcome.give_up(name, error)
    return outcome


def compare(
    jobs: dict[str, BenchJob],
    rounds: int,
    *,
    start: Start = Worker,
    watch: Watch = lambda _: None,
    settle: float = SETTLE,
    discard: int = 1,
) -> Outcome:
    """Run rows against each other, in turns.

    Args:
        jobs: by row, in the order of the turns; all with as many workloads.
        rounds: runs of each workload by each row.
        start: makes a worker of a job.
        watch: told what is going on.
        settle: seconds between turns.
        discard: rounds before those that count: while the others loaded, the pages of the first
            may have been dropped.

    Returns:
        What was measured. A row that fails drops out, and the others go on.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def drop(name: str, error: BenchmarkError) -> None:
            outcome.give_up(name, error)
            workers.pop(name).stop()

        for name, job in jobs.items():
            watch(f"{name}: load and warm up")
            workers[name] = stack.enter_context(_started(job, start))
            try:
                ready = workers[name].ready()
                outcome.measured[name] = Measured(ready, [[] for _ in job.workloads])
            except BenchmarkError as error:
                drop(name, error)
        workloads = max((len(job.workloads) for job in jobs.values()), default=0)
        for turn in range(-discard, rounds):
            for index in range(workloads):
                for name in list(workers):
                    watch(f"{name}: run {turn + 1} of {rounds}")
                    time.sleep(settle)
                    try:
                        timing = workers[name].run(index)
                        if turn >= 0:
                            outcome.measured[name].timings[index].append(timing)
                    except BenchmarkError as error:
                        drop(name, error)
        for name in list(workers):
            try:
                outcome.measured[name].finished = workers[name].finish()
            except BenchmarkError as error:
                drop(name, error)
    return outcome


def compare_apart(
    jobs: dict[str, BenchJob],
    rounds: int,
    *,
    start: Start = Worker,
    watch: Watch = lambda _: None,
) -> Outcome:
    """Run rows against each other in turns, a new process for every turn: for networks so large
    that two rows do not fit into memory together. It pays for loading in every round.

    Args:
        jobs: by row, in the order of the turns; all with as many workloads.
        rounds: runs of each workload by each row, each after the first call of its process where
            a job has one.
        start: makes a worker of a job.
        watch: told what is going on.

    Returns:
        What was measured; what a row says of itself is the last process's word.
    """
    outcome = Outcome()
    for turn in range(rounds):
        for name, job in jobs.items():
            if name in outcome.failed:
                continue
            watch(f"{name}: load, warm up and run {turn + 1} of {rounds}")
            before = outcome.measured.get(name)
            timings = before.timings if before else [[] for _ in job.workloads]
            try:
                with _started(job, start) as worker:
                    ready = worker.ready()
                    for index, of_workload in enumerate(timings):
                        of_workload.append(worker.run(index))
                    outcome.measured[name] = Measured(ready, timings, worker.finish())
            except BenchmarkError as error:
                outcome.give_up(name, error)
    return outcome


@contextmanager
def _started(job: BenchJob, start: Start) -> Iterator[Worker]:
    worker = start(job)
    try:
        yield worker
    finally:
        worker.stop()
