"""Whose turn it is, what becomes of workers that fail, and that none is left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from kdrt_bench.conductor import Worker, compare, compare_apart, prepare
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.jobs import BenchJob
from tests.support.bench_workers import FAKE, MakeJob, Turns, start


def test_rows_take_turns_after_all_are_loaded(job: MakeJob, turns: Turns) -> None:
    outcome = compare({n: job(n) for n in "AB"}, 3, start=start, settle=0, discard=0)
    assert turns() == ["A ready", "B ready", *["A run 0", "B run 0"] * 3]
    assert [len(outcome.measured[name].timings[0]) for name in "AB"] == [3, 3]
    assert not outcome.failed


def test_the_workloads_of_a_curve_take_turns_too(job: MakeJob, turns: Turns) -> None:
    compare({n: job(n, workloads=2) for n in "AB"}, 2, start=start, settle=0, discard=0)
    assert turns()[2:] == ["A run 0", "B run 0", "A run 1", "B run 1"] * 2


def test_a_discarded_round_is_run_and_not_counted(job: MakeJob, turns: Turns) -> None:
    outcome = compare({"A": job("A")}, 2, start=start, settle=0, discard=1)
    assert turns().count("A run 0") == 3
    assert len(outcome.measured["A"].timings[0]) == 2


def test_what_a_worker_says_of_itself_arrives(job: MakeJob) -> None:
    measured = compare({"A": job("A")}, 1, start=start, settle=0).measured["A"]
    assert measured.ready.settings == {"name": "A"}
    assert measured.finished is not None
    assert measured.finished.memory_peak == 10**6
    assert (job("A").folder / "0.npz").is_file()


def test_a_row_that_dies_drops_out_with_its_last_words_and_the_others_go_on(job: MakeJob) -> None:
    jobs = {"A": job("A", die_at=2), "B": job("B")}
    outcome = compare(jobs, 4, start=start, settle=0, discard=0)
    assert str(outcome.failed["A"]) == "the worker died (exit code 3): the last words"
    assert list(outcome.measured) == ["B"]
    assert len(outcome.measured["B"].timings[0]) == 4


def test_rows_too_large_for_memory_together_are_never_alive_together(
    job: MakeJob, turns: Turns
) -> None:
    outcome = compare_apart({"A": job("A"), "B": job("B", die_at=1)}, 2, start=start)
    assert turns() == ["A ready", "A run 0", "B ready", "A ready", "A run 0"]
    assert len(outcome.measured["A"].timings[0]) == 2
    assert outcome.measured["A"].finished is not None
    assert "the last words" in str(outcome.failed["B"])


def test_a_row_that_falls_silent_is_given_up(job: MakeJob) -> None:
    def impatient(job: BenchJob) -> Worker:
        return Worker(job, FAKE, patience=1.0)

    outcome = compare({"A": job("A", hang_at=1)}, 1, start=impatient, settle=0, discard=0)
    assert "said nothing for 1 seconds" in str(outcome.failed["A"])


def test_rows_prepare_one_after_the_other_and_may_refuse(job: MakeJob, turns: Turns) -> None:
    outcome = prepare({"A": job("A"), "B": job("B", refuse="not\n here")}, start)
    assert turns() == ["A prepare", "B prepare"]
    assert {n: str(e) for n, e in outcome.failed.items()} == {"B": "not here"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_process_is_left_behind(
    job: MakeJob, tmp_path: Path, error: type[BaseException]
) -> None:
    workers = []

    def started(job: BenchJob) -> Worker:
        workers.append(start(job))
        return workers[-1]

    def interrupt(what: str) -> None:
        if ": run 2" in what:
            raise error

    with pytest.raises(error):
        compare(
            {"A": job("A", child=tmp_path / "child")}, 3, start=started, watch=interrupt, settle=0
        )
    pids = [int(pid) for pid in (tmp_path / "child").read_text().split()]
    assert workers[0].pid == pids[0]
    assert _gone(pids)


def test_a_worker_ends_when_its_conductor_does(job: MakeJob) -> None:
    worker = start(job("A"))
    worker.ready()
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(20) == 0
    worker.stop()


def test_an_answer_that_is_none_is_an_error(job: MakeJob) -> None:
    worker = Worker(job("A"), ("echo", "hello"), patience=20)
    with pytest.raises(BenchmarkError, match="no answer: hello"):
        worker.ready()
    worker.stop()


def _gone(pids: list[int]) -> bool:
    """Whether all have ended; a process that was killed may take a moment."""

    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False
