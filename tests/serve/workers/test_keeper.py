"""Workers that end are started again; those that never come up are given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kdrt.errors import EngineUnavailableError, KdrtError
from kdrt.serve.workers.keeper import Keeper, pause_after
from kdrt.serve.workers.specs import WorkerSpec
from tests.support.serving import until
from tests.support.workers import FakeWorker, spec_of

Make = Callable[[WorkerSpec], FakeWorker]


class Kept:
    """A keeper of fakes, and what it told."""

    def __init__(self, *makes: Make, is_needed: bool = False) -> None:
        self.made: list[FakeWorker] = []
        self.failures: list[KdrtError] = []
        self.has_failed = threading.Event()
        self._makes = list(makes)
        self.keeper = Keeper(
            spec_of("0"),
            self._make,
            is_needed=lambda: is_needed,
            on_ready=lambda: None,
            on_failure=self._fail,
            first_pause=0.001,
        )

    def _make(self, spec: WorkerSpec) -> FakeWorker:
        make = self._makes.pop(0) if self._makes else FakeWorker
        worker = make(spec)
        self.made.append(worker)
        return worker

    def _fail(self, error: KdrtError) -> None:
        self.failures.append(error)
        self.has_failed.set()


@contextmanager
def kept(*makes: Make, is_needed: bool = False) -> Iterator[Kept]:
    made = Kept(*makes, is_needed=is_needed)
    made.keeper.start()
    try:
        yield made
    finally:
        made.keeper.close()


def broken(spec: WorkerSpec) -> FakeWorker:
    return FakeWorker(spec, comes_up=False)


def refusing(spec: WorkerSpec) -> FakeWorker:
    return FakeWorker(spec, comes_up=False, refused=EngineUnavailableError("there is no GPU 7"))


def without_a_process(spec: WorkerSpec) -> FakeWorker:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def without_a_thread(spec: WorkerSpec) -> FakeWorker:
    raise RuntimeError("can't start new thread")


def test_pauses_grow_up_to_a_minute() -> None:
    pauses = [pause_after(failures) for failures in range(1, 10)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == pause_after(100_000) == 60


def test_what_has_ended_is_started_again() -> None:
    with kept() as it:
        for restarts in range(1, 4):
            until(lambda: it.keeper.worker is not None and it.keeper.worker.is_ready)
            it.made[-1].end(0)
            until(lambda restarts=restarts: it.keeper.restarts == restarts)  # type: ignore[misc]
        until(lambda: len(it.made) == 4)
        assert not it.failures
    assert not it.made[-1].is_ready


def test_after_the_end_nothing_is_started() -> None:
    with kept() as it:
        until(lambda: bool(it.made))
    it.keeper.close()
    assert (len(it.made), it.keeper.restarts, it.keeper.worker) == (1, 0, None)


def test_what_says_why_it_cannot_is_given_up_at_once() -> None:
    with kept(refusing) as it:
        assert it.has_failed.wait(30)
    assert len(it.made) == 1
    assert str(it.failures[0]) == "worker 0 cannot be started: there is no GPU 7"


def test_what_never_comes_up_is_given_up_after_a_few_attempts() -> None:
    with kept(without_a_thread, without_a_process, broken) as it:
        assert it.has_failed.wait(30)
    assert len(it.made) == 1
    assert "was ended before it was ready, 3 times in a row" in str(it.failures[0])


@pytest.mark.parametrize("fails", [broken, refusing])
def test_what_has_worked_is_tried_for_as_long_as_others_work(fails: Make) -> None:
    with kept(FakeWorker, *[fails] * 5) as it:
        until(lambda: bool(it.made))
        it.made[0].end(0)
        until(lambda: len(it.made) == 7)
        assert not it.failures


def test_what_has_worked_is_given_up_where_nothing_else_works() -> None:
    with kept(FakeWorker, *[broken] * 9, is_needed=True) as it:
        until(lambda: bool(it.made))
        it.made[0].end(0)
        assert it.has_failed.wait(30)
    assert len(it.made) == 3
