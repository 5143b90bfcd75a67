"""The study of in-flight batching: its plan, its arithmetic, its tables, and a run of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import in_flight
from kdrt_bench.arrivals import LOADS, MIX, Arrival, Kind, Served, poisson_arrivals, service
from kdrt_bench.service import at_load, batch_of, end_to_end, request_of
from kdrt_bench.service_study import (
    BESIDE,
    IN_FLIGHT,
    MAIN,
    ONE,
    STATIC,
    cells_of,
    in_turn,
    requests_within,
    rows_way,
)
from kdrt_bench.tick_parts import Stopwatch

OWN = {kind: float(kind.steps * kind.rows) for kind in MIX}


@pytest.mark.parametrize("load", LOADS)
def test_a_trace_has_exactly_its_load(load: float) -> None:
    arrivals = poisson_arrivals(1.0, 30, seed=3)
    stretched = at_load(arrivals, OWN, load)
    work = sum(OWN[arrival.kind] for arrival in stretched)
    assert work / stretched[-1].seconds == pytest.approx(load)
    assert [arrival.kind for arrival in stretched] == [arrival.kind for arrival in arrivals]
    gaps = [arrival.seconds / stretched[0].seconds for arrival in stretched]
    assert gaps == pytest.approx([a.seconds / arrivals[0].seconds for a in arrivals])


def test_rounds_are_one_after_the_other() -> None:
    first = [Served(Arrival(1.0, MIX[0]), 9.0, 2.0), Served(Arrival(2.0, MIX[1]), 5.0, 1.0)]
    second = [Served(Arrival(0.5, MIX[0]), 1.0, 0.25)]
    joined = end_to_end([first, second])
    assert joined[2].arrival.seconds == 9.5
    assert joined[2].finished == 10.0
    assert [one.latency for one in joined] == [8.0, 3.0, 0.5]
    assert [one.own for one in joined] == [2.0, 1.0, 0.25]
    assert service(joined, leave_out=0.0).images_per_second == pytest.approx(3 / 9)


def test_every_load_has_the_three_ways_and_some_have_more() -> None:
    cells = cells_of()
    assert len(set(cells)) == len(cells)
    for load in LOADS:
        assert [cell.way for cell in cells if cell.load == load][:3] == [ONE, STATIC, IN_FLIGHT]
    assert sum(cell.load == 0.3 for cell in cells) == len(MAIN)
    assert {cell.load for cell in cells if cell.way == rows_way(16)} == {0.7, 1.1}
    assert {cell.load for cell in cells if cell.way == BESIDE} == {0.7}


def test_turns_have_the_same_cells_and_other_beginnings() -> None:
    cells = cells_of()
    turns = [in_turn(cells, turn) for turn in range(3)]
    for turn in turns:
        assert sorted(map(str, turn)) == sorted(map(str, cells))
        assert [load for load, _ in itertools.groupby(turn, lambda cell: cell.load)] == list(LOADS)
    assert {turn[0].way for turn in turns} == set(MAIN)


def test_a_longer_time_or_load_has_more_requests() -> None:
    mean = sum(kind.share * OWN[kind] for kind in MIX)
    assert requests_within(100 * mean, OWN, 0.5) == 50
    assert requests_within(100 * mean, OWN, 1.1) == 110
    assert requests_within(0.0, OWN, 0.5) == 6


def test_a_batch_is_its_requests() -> None:
    kind = Kind(20, "euler", True, 1.0)
    batch = batch_of(kind, [3, 8])
    singles = [request_of(kind, number) for number in (3, 8)]
    assert batch["seed"] == [single["seed"] for single in singles]
    assert batch["prompt"] == [single["prompt"] for single in singles]
    for name in ("steps", "sampler", "guidance_scale"):
        assert batch[name] == singles[0][name]
    assert request_of(Kind(4, "lcm", False, 1.0), 0)["guidance_scale"] == 1.0


def test_a_stopwatch_counts_a_call_without_those_inside() -> None:
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    watch = Stopwatch(clock=lambda: now)
    inner = watch.timed(lambda: passes(2.0), "inner")

    def body() -> None:
        passes(1.0)
        inner()
        inner()
        passes(0.5)

    outer = watch.timed(body, "outer")
    outer()
    outer()
    assert watch.seconds == {"inner": 8.0, "outer": 3.0}
    assert watch.calls == {"inner": 4, "outer": 2}


def test_a_stopwatch_leaves_classes_as_they_were() -> None:
    class Worker:
        def work(self) -> int:
            return 3

    watch, before = Stopwatch(), Worker.work
    with watch.watching([(Worker, "work", "work")]):
        assert Worker().work() == 3
    assert Worker.work is before
    assert watch.calls == {"work": 1}


@pytest.mark.slow
def test_it_measures_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    in_flight.main(tmp_path, full=False, minutes=0.1, rounds=1, loads="0.7")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "in_flight.json").read_text())
    (model,) = last["models"]
    assert {(cell["load"], cell["way"]) for cell in model["cells"]} == {
        (cell.load, cell.way) for cell in cells_of([0.7])
    }
    for cell in model["cells"]:
        assert cell["requests"] >= 6
        assert cell["service"]["latency"]["n"] == cell["requests"]
    assert model["parts"]["milliseconds"]["UNet"] > 0
    assert len(model["lone"]) == 2
    assert "## demo" in (tmp_path / "in_flight.md").read_text()
    assert (tmp_path / "in_flight.png").stat().st_size > 10_000
