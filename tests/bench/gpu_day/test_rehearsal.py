"""The stand-ins keep to CUDA's contract where the benchmark relies on it."""

from __future__ import annotations

import pytest
import torch

from kdrt.denoise import cuda_graphs
from kdrt.denoise.denoising import Denoising
from kdrt_bench.gpu_day.clock import in_turns, median, step_milliseconds
from kdrt_bench.gpu_day.rehearsal import HostEvent, RepeatedWork, rehearsed


def test_an_event_has_a_time_once_it_was_recorded() -> None:
    start, end = HostEvent(enable_timing=True), HostEvent(enable_timing=True)
    start.record()
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    end.record()
    assert start.elapsed_time(end) >= 0


def test_an_event_without_timing_has_no_time() -> None:
    event = HostEvent()
    event.record()
    with pytest.raises(RuntimeError, match="enable_timing"):
        event.elapsed_time(event)


def test_work_is_done_at_every_replay() -> None:
    done: list[int] = []
    graph = RepeatedWork(lambda: done.append(1), ())
    assert len(done) == 1
    graph.replay()
    assert len(done) == 2


def test_stand_ins_leave_again() -> None:
    def now() -> list[object]:
        return [torch.cuda.Event, vars(cuda_graphs)["capture_on"], Denoising.__init__]

    before = now()
    with rehearsed():
        assert not set(map(id, now())) & set(map(id, before))
    assert now() == before


def test_what_warms_up_does_not_count() -> None:
    runs: list[int] = []
    with rehearsed():
        assert median(lambda: runs.append(1), 3) >= 0
    assert len(runs) == 5


def test_a_step_leaves_out_what_an_image_costs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {4: 50.0, 2: 30.0}
    made: list[int] = []

    def pretended(work: object) -> float:
        work()  # type: ignore[operator]
        return costs[made[-1]]

    monkeypatch.setattr("kdrt_bench.gpu_day.clock.milliseconds", pretended)
    assert step_milliseconds(made.append, 4) == 10
    assert made == [4, 2]


def test_two_in_turns() -> None:
    order: list[str] = []

    def timed(name: str, value: float) -> float:
        order.append(name)
        return value

    ours, theirs, ratio = in_turns(lambda: timed("a", 2.0), lambda: timed("b", 8.0), 2)
    assert (ours, theirs, ratio.median) == (2.0, 8.0, 0.25)
    assert "".join(order) == "abbaabba" or "".join(order) == "baabbaab"
