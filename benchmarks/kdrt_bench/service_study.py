"""In-flight batching against its alternatives, on one model: which ways of serving meet which
loads, and what is measured beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import kdrt
from kdrt_bench.arrivals import (
    LOADS,
    MIX,
    Kind,
    Served,
    Service,
    mean_of_mix,
    poisson_arrivals,
    service,
)
from kdrt_bench.jobs import Strict
from kdrt_bench.service import (
    LoneRequest,
    Serve,
    at_load,
    decode_beside_ticks,
    end_to_end,
    in_flight,
    lone_request,
    one_at_a_time,
    static_batches,
    words_of,
    work_alone,
)
from kdrt_bench.tick_parts import TickParts, seconds_by_rows, tick_parts

ROWS = 8
"""Most rows of a UNet run, as `kdrt.Batcher` has it on a CPU."""

ONE, STATIC, IN_FLIGHT = "one at a time", "static batches", "in flight"
MAIN = (ONE, STATIC, IN_FLIGHT)
BESIDE = "in flight, decoding in a thread"
VARIED_ROWS = (2, 4, 16)
UNET_ROWS = (1, 2, 4, 8, 16)
VARIED_IMAGES = (ROWS // 2, 2 * ROWS)

_TURNS_ALONE = 3
_REPEATS = 9
_FEWEST = 6
"""Requests of a trace; and rounds of paired ratios, below which there is no interval."""
_DRAIN = 1.1
"""How much longer than its horizon a trace takes until its last image is there, in the mean."""
_LONE_SHARE = 0.08


@dataclass(frozen=True)
class Cell:
    """One way to serve at one load."""

    load: float
    way: str


class CellReport(Strict):
    """What came of it, all rounds together."""

    load: float
    way: str
    requests: int
    service: Service


class ModelReport(Strict):
    """What was measured on a model.

    Attributes:
        alone: seconds of a request of each kind on an idle machine.
        capacity: requests a second, one at a time: the loads are shares of it.
        drift: the mean work alone after all traces, over that before them. Far from 1 the machine
            had other work, and the loads were not what they are called.
        rounds: traces of every load that were served.
        cells: in the order of `cells_of`.
        lone: what a request costs that is alone.
        parts: of a tick.
        seconds_by_rows: of a UNet run, by its rows: what sharing can gain at most.
        seconds: that all of it took.
    """

    model: str
    alone: dict[str, float]
    capacity: float
    drift: float
    rounds: int
    cells: tuple[CellReport, ...]
    lone: tuple[LoneRequest, ...]
    parts: TickParts
    seconds_by_rows: dict[str, float]
    seconds: float

    def find(self, load: float, way: str) -> CellReport | None:
        """What came of a cell; None where it was not measured."""
        return next((c for c in self.cells if (c.load, c.way) == (load, way)), None)


def rows_way(rows: int) -> str:
    """In flight with another batch limit."""
    return IN_FLIGHT if rows == ROWS else f"in flight, {rows} rows"


def images_way(images: int) -> str:
    """In flight with other numbers of images on their way."""
    return IN_FLIGHT if images == ROWS else f"in flight, {images} images"


def cells_of(loads: Sequence[float] = LOADS) -> list[Cell]:
    """What is measured in a round. At 70 and 110 % the batch limit is varied; at 70 % also how many
    images are in flight, and where images are decoded."""
    cells = []
    for load in loads:
        ways = [*MAIN]
        if load in (0.7, 1.1):
            ways += map(rows_way, VARIED_ROWS)
        if load == 0.7:
            ways += [*map(images_way, VARIED_IMAGES), BESIDE]
        cells += [Cell(load, way) for way in ways]
    return cells


def in_turn(cells: Sequence[Cell], turn: int) -> list[Cell]:
    """The same cells, load by load, each load's ways begun at another one in every turn: so that
    none is always the first or the last."""
    ordered = []
    for place, load in enumerate(dict.fromkeys(cell.load for cell in cells)):
        same = [cell for cell in cells if cell.load == load]
        first = (place + turn) % len(same)
        ordered += [*same[first:], *same[:first]]
    return ordered


def requests_within(seconds: float, own: Mapping[Kind, float], load: float) -> int:
    """How many requests come in so many seconds."""
    return max(_FEWEST, round(seconds * load / mean_of_mix(dict(own))))


def study(
    pipe: kdrt.Pipeline,
    name: str,
    *,
    seconds: float,
    rounds: int,
    loads: Sequence[float] = LOADS,
    watch: Callable[[str], object] = lambda _: None,
) -> ModelReport:
    """Measure one model.

    Args:
        pipe: loaded.
        name: of the model, for the report.
        seconds: that it may take. Traces are as long as this allows, but of six requests at least.
        rounds: traces of every load, each served in every way before the next.
        loads: some of `LOADS`.
        watch: told what is going on.
    """
    begun = time.perf_counter()
    watch("each kind alone")
    own = work_alone(pipe, MIX, _TURNS_ALONE)
    cells = cells_of(loads)
    with ExitStack() as stack:
        batchers = _batchers(pipe, stack)
        for way, batcher in batchers.items():
            watch(f"warm up: {way}")
            tick_parts(batcher, MIX[:2])
        watch("a lone request")
        lone = tuple(
            lone_request(pipe, batchers[IN_FLIGHT], kind, _lone_rounds(seconds, own[kind]))
            for kind in (MIX[0], MIX[2])
        )
        watch("the parts of a tick")
        parts = tick_parts(batchers[IN_FLIGHT], MIX)
        by_rows = seconds_by_rows(pipe, UNET_ROWS, _REPEATS)
        ways = {
            ONE: one_at_a_time(pipe),
            STATIC: static_batches(pipe, ROWS),
            **{way: in_flight(batcher) for way, batcher in batchers.items()},
        }
        served = _serve(cells, ways, own, rounds, begun + seconds, watch)
    watch("each kind alone, once more")
    after = work_alone(pipe, MIX, 1)
    return ModelReport(
        model=name,
        alone={words_of(kind): taken for kind, taken in own.items()},
        capacity=1 / mean_of_mix(own),
        drift=mean_of_mix(after) / mean_of_mix(own),
        rounds=len(served[cells[0]]),
        cells=tuple(
            CellReport(
                load=cell.load,
                way=cell.way,
                requests=sum(map(len, served[cell])),
                service=service(end_to_end(served[cell]), leave_out=0.0),
            )
            for cell in cells
        ),
        lone=lone,
        parts=parts,
        seconds_by_rows={str(rows): taken for rows, taken in by_rows.items()},
        seconds=time.perf_counter() - begun,
    )


def _serve(
    cells: Sequence[Cell],
    ways: Mapping[str, Serve],
    own: Mapping[Kind, float],
    rounds: int,
    deadline: float,
    watch: Callable[[str], object],
) -> dict[Cell, list[list[Served]]]:
    """The answers of every cell, a list a round. The traces of a round are as long as the time
    until the deadline allows for it and those after it; only the first is served whatever the
    time."""
    served: dict[Cell, list[list[Served]]] = {cell: [] for cell in cells}
    for turn in range(rounds):
        left = deadline - time.perf_counter()
        if turn > 0 and left <= 0:
            break
        horizon = max(0.0, left) / ((rounds - turn) * len(cells) * _DRAIN)
        for cell in in_turn(cells, turn):
            watch(f"round {turn + 1} of {rounds}, {cell.load:.0%}, {cell.way}")
            count = requests_within(horizon, own, cell.load)
            trace = at_load(poisson_arrivals(1.0, count, turn), own, cell.load)
            served[cell].append(ways[cell.way](trace, own))
    return served


def _batchers(pipe: kdrt.Pipeline, stack: ExitStack) -> dict[str, kdrt.Batcher]:
    """One for every way that needs one; an idle one costs its thread and buffers alone."""
    made = {
        IN_FLIGHT: kdrt.Batcher(pipe, max_rows=ROWS),
        BESIDE: kdrt.Batcher(pipe, max_rows=ROWS),
        **{rows_way(rows): kdrt.Batcher(pipe, max_rows=rows) for rows in VARIED_ROWS},
        **{
            images_way(images): kdrt.Batcher(pipe, max_rows=ROWS, max_images=images)
            for images in VARIED_IMAGES
        },
    }
    for batcher in made.values():
        stack.enter_context(batcher)
    decode_beside_ticks(made[BESIDE])
    return made


def _lone_rounds(seconds: float, own: float) -> int:
    """Rounds of two requests each, of two kinds, in a small part of the time."""
    return min(40, max(_FEWEST, int(_LONE_SHARE * seconds / 2 / (2 * own))))
