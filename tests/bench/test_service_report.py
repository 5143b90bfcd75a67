"""The tables and the plot of in-flight batching under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt_bench.arrivals import MIX, Arrival, Served, service
from kdrt_bench.service import LoneRequest
from kdrt_bench.service_report import InFlightReport, draw, markdown
from kdrt_bench.service_study import CellReport, ModelReport, cells_of
from kdrt_bench.statistics import paired_ratio
from kdrt_bench.tick_parts import TickParts


@pytest.fixture
def report() -> InFlightReport:
    """Of loads of 50 and 70 %, in which every request of a cell takes as many seconds as there are
    cells before it, and one."""
    cells = [
        CellReport(
            load=cell.load,
            way=cell.way,
            requests=2,
            service=service(
                [Served(Arrival(at, MIX[0]), at + place + 1, 0.5) for at in (0.0, 10.0)],
                leave_out=0.0,
            ),
        )
        for place, cell in enumerate(cells_of([0.5, 0.7]))
    ]
    lone = LoneRequest(
        request="4 lcm",
        pipeline=0.25,
        ratio=paired_ratio([1.02, 1.04, 1.03], [1.0, 1.0, 1.0]),
        quartiles=(1.025, 1.035),
    )
    model = ModelReport(
        model="demo",
        alone={"4 lcm": 0.5},
        capacity=2.0,
        drift=1.01,
        rounds=1,
        cells=tuple(cells),
        lone=(lone,),
        parts=TickParts(ticks=7, images=2.5, milliseconds={"UNet": 12.3456}),
        seconds_by_rows={"1": 0.01, "2": 0.0125},
        seconds=60.0,
    )
    return InFlightReport(machine={"processor": "one", "cores": "2"}, models=(model,))


def test_the_tables_have_every_cell_where_it_is_compared(report: InFlightReport) -> None:
    text = markdown(report)
    assert text.startswith("processor one, cores 2.")
    assert "One at a time 2 requests a second" in text
    assert "| 50% | one at a time | 2 | 1.00 s | 1.00 s | 1.00 s | 0.182 | 2.00 |" in text
    assert text.count("| 50% | in flight |") == 1
    # Once among the three ways, and once in each table of limits and of decoding.
    assert text.count("| 70% | in flight |") == 4
    for way in ("2 rows", "4 rows", "16 rows", "4 images", "16 images"):
        assert text.count(f"| 70% | in flight, {way} |") == 1
    assert text.count("| 70% | in flight, decoding in a thread |") == 1


def test_a_lone_request_has_no_interval_of_three_rounds(report: InFlightReport) -> None:
    assert "| 4 lcm | 250 ms | 1.030 |  | 1.025–1.035 | 3 |" in markdown(report)


def test_the_parts_of_a_tick(report: InFlightReport) -> None:
    text = markdown(report)
    assert "A UNet run takes 10.0 ms with 1 row, 12.5 ms with 2 rows." in text
    assert "7 ticks of 2.5 images in the mean." in text
    assert "| UNet | 12.346 |" in text


def test_it_is_drawn(report: InFlightReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
