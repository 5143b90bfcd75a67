"""Threads that work together are on processors of their own, and everything is as before after."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

import pytest

from kdrt_engines import processors
from kdrt_engines.onnxruntime.thread_pool import ThreadPool
from kdrt_engines.processors import Processors

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0

pytestmark = pytest.mark.skipif(
    PROCESSORS < 2,
    reason="needs a system that lets threads choose between processors, and two of them",
)


class Tables:
    """What a system with a few processors would be told: who is allowed where."""

    def __init__(self, count: int, here: int) -> None:
        self.of_caller, self.of_others = set(range(count)), dict[int, list[int]]()
        self.here, self.calls = here, 0
        self.refuses = False

    def set(self, thread: int, allowed: set[int] | list[int]) -> None:
        self.calls += 1
        if self.refuses:
            raise PermissionError
        if thread == 0:
            self.of_caller = set(allowed)
        else:
            self.of_others[thread] = sorted(allowed)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Tables]:
    def make(count: int, here: int) -> Tables:
        tables = Tables(count, here)
        monkeypatch.setattr(processors, "_current_processor", lambda: lambda: tables.here)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(tables.of_caller))
        monkeypatch.setattr(os, "sched_setaffinity", tables.set)
        return tables

    return make


@pytest.mark.parametrize("size", range(2, PROCESSORS + 1))
def test_nobody_in_a_pool_is_where_the_caller_is(size: int) -> None:
    before = os.sched_getaffinity(0)
    pool, seen = ThreadPool(size), dict[int, set[int]]()

    def part(index: int) -> None:
        seen[index] = os.sched_getaffinity(0)

    for _ in range(3):
        pool.run([partial(part, index) for index in range(size)])
        workers = [seen[i] for i in range(1, size)]
        if size == PROCESSORS:
            assert sorted([*seen[0]] + [one for (one,) in workers]) == sorted(before)
        else:
            assert seen[0] == before
            assert all(len(before - places) == 1 for places in workers)
        assert os.sched_getaffinity(0) == before


def test_the_caller_is_free_again_after_an_error() -> None:
    before = os.sched_getaffinity(0)

    def fails() -> None:
        assert len(os.sched_getaffinity(0)) == 1
        raise ValueError("of the caller's part")

    with pytest.raises(ValueError, match="caller's part"):
        ThreadPool(PROCESSORS).run([fails, lambda: None])
    assert os.sched_getaffinity(0) == before


def test_every_thread_of_a_full_pool_has_one(system: Callable[[int, int], Tables]) -> None:
    tables = system(4, 2)
    with Processors([11, 12, 13]).apart():
        assert tables.of_caller == {2}
        assert tables.of_others == {11: [0], 12: [1], 13: [3]}
    assert tables.of_caller == {0, 1, 2, 3}


def test_the_scheduler_chooses_where_it_has_a_choice(system: Callable[[int, int], Tables]) -> None:
    tables = system(5, 1)
    with Processors([11, 12]).apart():
        assert tables.of_others == {11: [0, 2, 3, 4], 12: [0, 2, 3, 4]}
        assert tables.of_caller == {0, 1, 2, 3, 4}


def test_threads_are_placed_anew_only_when_the_caller_has_moved(
    system: Callable[[int, int], Tables],
) -> None:
    tables = system(2, 0)
    places = Processors([11])
    for here, calls in ((0, 3), (0, 2), (1, 3)):
        tables.here, tables.calls = here, 0
        with places.apart():
            assert tables.of_others == {11: [1 - here]}
        assert tables.calls == calls


@pytest.mark.parametrize(("count", "here"), [(2, 0), (4, 7)])
def test_too_few_or_strange_processors_are_left_alone(
    count: int, here: int, system: Callable[[int, int], Tables]
) -> None:
    tables = system(count, here)
    with Processors([11, 12]).apart():
        assert tables.of_caller == set(range(count))
    assert tables.calls == 0


def test_a_system_that_refuses_is_asked_once(system: Callable[[int, int], Tables]) -> None:
    tables = system(2, 0)
    tables.refuses = True
    places = Processors([threading.get_native_id()])
    for _ in range(2):
        with places.apart():
            assert tables.of_caller == {0, 1}
    assert tables.calls == 1
