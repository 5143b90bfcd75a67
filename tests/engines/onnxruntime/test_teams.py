"""Threads that work together: all parts, each once, errors and ends."""

from __future__ import annotations

import gc
import threading
import time
from functools import partial

import pytest

from kdrt_engines.onnxruntime import teams
from kdrt_engines.onnxruntime.teams import Team


@pytest.fixture(params=["looking", "asleep"])
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers that are still looking for work when it comes, or have gone to sleep."""
    monkeypatch.setattr(teams, "_PATIENCE", {"looking": 10.0, "asleep": 0.0}[request.param])


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_part_runs_once_on_a_thread_of_its_own(size: int) -> None:
    team = Team(size)
    for _ in range(20):
        seen: dict[int, int] = {}
        # Nobody gets past it unless all are at work at once.
        together = threading.Barrier(size, timeout=10)

        def part(index: int, seen: dict[int, int], together: threading.Barrier) -> None:
            together.wait()
            seen[index] = threading.get_ident()

        team.run([partial(part, index, seen, together) for index in range(size)])
        assert sorted(seen) == list(range(size))
        assert len(set(seen.values())) == size
        assert seen[0] == threading.get_ident()


@pytest.mark.usefixtures("patience")
def test_fewer_parts_than_threads() -> None:
    done: list[int] = []
    Team(4).run([lambda: done.append(0), lambda: done.append(1)])
    assert sorted(done) == [0, 1]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_when_all_have_ended(failing: int) -> None:
    team, ended = Team(3), []

    def part(index: int) -> None:
        if index == failing:
            raise ValueError(f"part {index}")
        time.sleep(0.02)
        ended.append(index)

    with pytest.raises(ValueError, match=f"part {failing}"):
        team.run([lambda index=index: part(index) for index in range(3)])
    assert sorted(ended) == [index for index in range(3) if index != failing]
    team.run([lambda: ended.clear(), lambda: None, lambda: None])
    assert not ended, "and the team goes on"


@pytest.mark.usefixtures("patience")
def test_work_that_an_interrupted_caller_left_is_waited_for() -> None:
    team, order = Team(2), []

    def slow() -> None:
        time.sleep(0.05)
        order.append("first")

    team._helpers[0].start(slow)  # a caller that did not come back for it
    team.run([lambda: None, lambda: order.append("second")])
    assert order == ["first", "second"]


@pytest.mark.parametrize("at_work", [True, False])
def test_the_threads_end_with_the_team(at_work: bool) -> None:
    before = set(threading.enumerate())
    team = Team(3)
    team.run([lambda: None] * 3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    if at_work:
        team._helpers[0].start(lambda: time.sleep(0.05))
    del team
    gc.collect()
    for helper in helpers:
        helper.join(timeout=10)
        assert not helper.is_alive()
