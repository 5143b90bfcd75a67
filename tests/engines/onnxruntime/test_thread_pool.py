"""Threads that work together: all parts, each once, errors and ends."""

from __future__ import annotations

import gc
import threading
import time
from functools import partial

import pytest

from kdrt_engines.onnxruntime import thread_pool
from kdrt_engines.onnxruntime.thread_pool import ThreadPool


@pytest.fixture(params=["polling", "asleep"])
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are still polling for work when it comes, or have gone to sleep."""
    monkeypatch.setattr(
        thread_pool, "_POLL_SECONDS", {"polling": 10.0, "asleep": 0.0}[request.param]
    )


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_part_runs_once_on_a_thread_of_its_own(size: int) -> None:
    pool = ThreadPool(size)
    for _ in range(20):
        seen: dict[int, int] = {}
        # Nobody gets past it unless all are at work at once.
        together = threading.Barrier(size, timeout=10)

        def part(index: int, seen: dict[int, int], together: threading.Barrier) -> None:
            together.wait()
            seen[index] = threading.get_ident()

        pool.run([partial(part, index, seen, together) for index in range(size)])
        assert sorted(seen) == list(range(size))
        assert len(set(seen.values())) == size
        assert seen[0] == threading.get_ident()


@pytest.mark.usefixtures("patience")
def test_fewer_parts_than_threads() -> None:
    done: list[int] = []
    ThreadPool(4).run([lambda: done.append(0), lambda: done.append(1)])
    assert sorted(done) == [0, 1]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_when_all_have_ended(failing: int) -> None:
    pool, ended = ThreadPool(3), []

    def part(index: int) -> None:
        if index == failing:
            raise ValueError(f"part {index}")
        time.sleep(0.02)
        ended.append(index)

    with pytest.raises(ValueError, match=f"part {failing}"):
        pool.run([partial(part, index) for index in range(3)])
    assert sorted(ended) == [index for index in range(3) if index != failing]
    pool.run([lambda: ended.clear(), lambda: None, lambda: None])
    assert not ended, "and the pool goes on"


@pytest.mark.usefixtures("patience")
def test_work_that_an_interrupted_caller_left_is_waited_for() -> None:
    pool, order = ThreadPool(2), []

    def slow() -> None:
        time.sleep(0.05)
        order.append("first")

    pool._workers[0].start(slow)  # a caller that did not come back for it
    pool.run([lambda: None, lambda: order.append("second")])
    assert order == ["first", "second"]


@pytest.mark.parametrize("at_work", [True, False])
def test_the_threads_end_with_the_team(at_work: bool) -> None:
    before = set(threading.enumerate())
    pool = ThreadPool(3)
    pool.run([lambda: None] * 3)
    workers = set(threading.enumerate()) - before
    assert len(workers) == 2
    if at_work:
        pool._workers[0].start(lambda: time.sleep(0.05))
    del pool
    gc.collect()
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()
