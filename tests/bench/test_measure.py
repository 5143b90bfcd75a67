"""From experiments to a report: with fake workers, and once with the demo model for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdrt.errors import KdrtError
from kdrt_bench import measure
from kdrt_bench.experiment import Experiment, RowPlan
from kdrt_bench.jobs import ImageWorkload, Model
from kdrt_bench.machine import Peak, measure_peak
from kdrt_bench.measure import Measurement
from kdrt_bench.report import Report, read_report
from kdrt_bench.writing import write_report
from tests.support.bench_workers import start

MakePlan = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> Peak:
    """A machine that does 100 GFLOP/s."""
    peak = Peak(threads=1, gflops=100.0, gigabytes=10.0)
    monkeypatch.setattr(measure, "measure_peak", lambda threads: peak)
    return peak


@pytest.fixture
def plan(model: Model, tmp_path: Path) -> MakePlan:
    """An experiment of fake rows: what each takes and makes, and how it fails."""

    def row(label: str, peer: str, **options: Any) -> RowPlan:
        given = {"name": label, "log": tmp_path / "log", **options}
        return RowPlan(label, peer, {k: str(v) for k, v in given.items()})

    def make(kind: str = "rows", points: int = 1, **fails: Any) -> Experiment:
        return Experiment(
            key="image",
            title="A <image>",
            question="How long?",
            scenario="SingleStream",
            kind=kind,  # type: ignore[arg-type]
            model=model,
            workloads=(ImageWorkload(batch=2),) * points,
            points=tuple(map(float, range(points))),
            axis="points" if points > 1 else "",
            rows=(
                row("eager", "eager", seconds=0.4, value=0.5),
                row("kdrt", "kdrt", seconds=0.2, value=0.51, **fails),
            ),
            rounds=7,
        )

    return make


def run(plan: Experiment, folder: Path) -> Report:
    measurement = Measurement("quick", 1, folder, start=start)
    report = measurement.report([plan])
    write_report(report, folder)
    return report


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdrt_bench.conductor.time.sleep", lambda seconds: None)


def test_a_row_is_compared_with_the_anchor(plan: MakePlan, tmp_path: Path) -> None:
    report = run(plan(), tmp_path)
    eager, ours = report.experiments[0].rows
    assert eager.speedup is None
    assert ours.speedup is not None
    assert (ours.speedup.median, ours.speedup.low, ours.speedup.n) == (2.0, 2.0, 7)
    assert ours.likeness is not None
    assert ours.likeness.psnr == pytest.approx(40)
    assert ours.likeness.relative_error == pytest.approx(0.02)
    assert ours.images_per_second == pytest.approx(2 / 0.2)
    # The fake counts 1 GFLOP.
    assert ours.gflops == pytest.approx(5)
    assert ours.of_peak == pytest.approx(0.05)
    assert ours.stages == {"denoise": 0.05}
    assert ours.memory_peak == 10**6


def test_the_operations_of_a_workload_are_counted_once(plan: MakePlan, tmp_path: Path) -> None:
    measurement = Measurement("quick", 1, tmp_path, start=start)
    report = measurement.report([plan(), replace(plan(), key="again")])
    assert [each.gflop for each in report.experiments] == [(1.0,), (1.0,)]
    assert (tmp_path / "log").read_text().count("eager prepare") == 1


def test_a_report_is_read_back_as_it_was_written(plan: MakePlan, tmp_path: Path) -> None:
    report = run(plan(), tmp_path)
    assert read_report(tmp_path / "report.json") == report
    assert set(Report.model_json_schema()["required"]) >= {"machine", "experiments", "threads"}
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["machine"]["versions"]["torch"]


def test_a_row_that_fails_says_why_and_leaves_the_others(plan: MakePlan, tmp_path: Path) -> None:
    report = run(plan(die_at=2), tmp_path)
    (failed,) = report.failed()
    assert failed.label == "kdrt"
    assert "the last words" in (failed.failed or "")
    assert report.experiments[0].rows[0].seconds is not None
    assert "the last words" in (tmp_path / "report.html").read_text()


def test_a_peer_that_cannot_do_it_is_a_row_and_no_failure(plan: MakePlan, tmp_path: Path) -> None:
    report = run(plan(refuse="not this model", unavailable="yes"), tmp_path)
    assert not report.failed()
    assert report.experiments[0].rows[1].failed == "not this model"
    assert "not this model" in (tmp_path / "report.html").read_text()


def test_a_report_names_no_folder_of_this_machine(
    plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDRT_HOME", str(tmp_path / "home"))
    report = run(plan(refuse=f"{tmp_path}/home/bundles/demo is gone"), tmp_path)
    assert report.failed()[0].failed == "$KDRT_HOME/bundles/demo is gone"


def test_a_curve_has_rows_at_every_point(plan: MakePlan, tmp_path: Path) -> None:
    report = run(plan("curve", points=3), tmp_path)
    experiment = report.experiments[0]
    assert [len(list(experiment.at(point))) for point in experiment.points] == [2, 2, 2]


def test_a_server_needs_the_time_of_an_image_first(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(KdrtError, match="needs the time of an image"):
        run(plan("server"), tmp_path)


def test_a_server_without_requests_has_no_figures(plan: MakePlan, tmp_path: Path) -> None:
    measurement = Measurement("full", 1, tmp_path, start=start)
    served = replace(plan("server"), key="server", load=0.5, requests=3, rounds=1)
    report = measurement.report([plan(), served])
    assert {row.failed for row in report.experiments[1].rows} == {"no request arrived in time"}
    (workload,) = report.experiments[1].workloads
    assert workload["rate"] == pytest.approx(0.5 / 0.4)


class Page(HTMLParser):
    """What a page loads, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        wanted = ("src", "href", "xlink:href", "srcset", "data")
        self.loads += [value or "" for name, value in attributes if name in wanted]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize(("kind", "points"), [("rows", 1), ("curve", 3), ("ablation", 1)])
def test_the_page_holds_every_row_and_needs_nothing_else(
    plan: MakePlan, tmp_path: Path, kind: str, points: int
) -> None:
    report = run(plan(kind, points), tmp_path)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "@import" not in html
    assert "url(http" not in html
    assert not page.tags & {"script", "link", "iframe"}
    assert "svg" in page.tags
    said = " ".join(page.words)
    for row in report.experiments[0].rows:
        assert row.title in said
    assert "A <image>" in said
    assert "40 dB, SSIM" in said


def test_the_peak_of_this_machine_is_positive() -> None:
    found = measure_peak(1, side=64, megabytes=1, repeats=2)
    assert found.gflops > 0
    assert found.gigabytes > 0
