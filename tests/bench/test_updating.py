"""A report of which some experiments are measured again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdrt_bench import updating
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.experiment import Experiment, RowPlan
from kdrt_bench.jobs import ImageWorkload, Model
from kdrt_bench.machine import MachineReport, Peak
from kdrt_bench.models import model_of
from kdrt_bench.report import ExperimentReport, Report, Row, read_report
from kdrt_bench.suites import experiments
from kdrt_bench.updating import check_same_work, keep_images, report_to_update, updated

REPORT = Path(__file__).parents[2] / "benchmarks" / "results" / "full" / "report.json"
MACHINE = MachineReport(
    processor="a processor",
    features=(),
    cores=2,
    governor=None,
    frequency=None,
    memory=1,
    load=0.0,
    system="Linux",
    python="3.11.7",
    gpus=(),
    driver=None,
    versions={"kdrt": "0.3.0", "torch": "2.14"},
    commit="first",
    modified=False,
    peak=Peak(threads=2, gflops=1.0, gigabytes=1.0),
)
ORDER = ("image", "step", "image-real-1", "image-real-2", "server")


def experiment(key: str, peer: str = "eager", image: str | None = None) -> ExperimentReport:
    return ExperimentReport(
        key=key,
        title=key,
        question="?",
        scenario="SingleStream",
        kind="rows",
        model="demo",
        anchor="eager",
        axis="",
        points=(0,),
        workloads=(),
        gflop=(None,),
        rows=(Row(label=peer, peer=peer, title=peer, image=image),),
        started="2026-11-30T08:00:00+00:00",
        kdrt="0.3.0, commit first",
        load=0.1,
    )


def report(*experiments: ExperimentReport, **changes: Any) -> Report:
    peers = {row.peer: f"about {row.peer}" for each in experiments for row in each.rows}
    whole = Report(
        suite="full",
        started="2026-11-30T08:00:00+00:00",
        seconds=60,
        threads=2,
        machine=MACHINE,
        peers=peers,
        experiments=experiments,
    )
    return whole.model_copy(update=changes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a report, on the machine that it was made on, with a later kdrt."""
    versions = MACHINE.versions | {"kdrt": "0.4.0"}
    now = MACHINE.model_copy(update={"versions": versions, "commit": "second"})
    monkeypatch.setattr(updating, "describe", lambda peak: now)
    text = report(experiment("image")).model_dump_json()
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_later_kdrt_may_update(folder: Path) -> None:
    assert report_to_update(folder, "full", 2) == report(experiment("image"))


@pytest.mark.parametrize(
    ("suite", "threads", "changes", "said"),
    [
        ("quick", 2, {}, "was made with suite full, and now it is quick"),
        ("full", 1, {}, "was made with threads 2, and now it is 1"),
        ("full", 2, {"processor": "another"}, "processor a processor, and now it is another"),
        ("full", 2, {"versions": {"torch": "2.15"}}, r"torch 2\.14, and now it is 2\.15"),
        ("full", 2, {"versions": {}}, r"torch 2\.14, and now it is not installed"),
        ("full", 2, {"driver": "580"}, "driver None, and now it is 580"),
    ],
)
def test_what_would_not_compare_is_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    suite: str,
    threads: int,
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setattr(updating, "describe", lambda peak: MACHINE.model_copy(update=changes))
    with pytest.raises(BenchmarkError, match=said):
        report_to_update(folder, suite, threads)


@pytest.mark.parametrize("text", [None, b"{}", b"no JSON", b"\xff"])
def test_where_no_report_is_none_can_be_updated(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "report.json").write_bytes(text)
    with pytest.raises(BenchmarkError, match="holds no report to update; leave --update out"):
        report_to_update(tmp_path, "full", 2)


def test_the_committed_report_can_be_updated(demo_bundle: Path, tmp_path: Path) -> None:
    """Every experiment of the demo model, a server's too, whose rate is not known in advance."""
    committed = read_report(REPORT)
    plans = experiments("full", model_of(str(demo_bundle)), None)
    assert {each.key for each in plans} <= {each.key for each in committed.experiments}
    check_same_work(committed, plans, tmp_path)


def test_experiments_take_the_places_of_the_same_before() -> None:
    """Groups of one experiment are replaced together, also where there are more of them now."""
    before = report(
        experiment("image"), experiment("image-real-1", "kdrt"), experiment("server", "diffusers")
    )
    again = report(experiment("image-real-1"), experiment("image-real-2", "sd-cpp-f32"), seconds=5)
    after = updated(before, again, ("image-real",), ORDER)
    assert [each.key for each in after.experiments] == [
        *("image", "image-real-1", "image-real-2", "server")
    ]
    assert [each.again for each in after.experiments] == [False, True, True, False]
    assert after.seconds == 65
    assert set(after.peers) == {"eager", "diffusers", "sd-cpp-f32"}


def test_the_clock_of_a_gpu_may_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(clock: str) -> MachineReport:
        gpu = {"name": "a card", "SM clock": clock}
        return MACHINE.model_copy(update={"gpus": (gpu,)})

    monkeypatch.setattr(updating, "describe", lambda peak: machine("2000 MHz"))
    before = report(experiment("image"), machine=machine("300 MHz"))
    (folder / "report.json").write_text(before.model_dump_json(), encoding="utf-8")
    assert report_to_update(folder, "full", 2) == before


def test_a_report_without_its_images_is_refused(folder: Path) -> None:
    before = report(experiment("image", image="images/gone.png"))
    (folder / "report.json").write_text(before.model_dump_json(), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"lacks its images/gone\.png"):
        report_to_update(folder, "full", 2)


@pytest.mark.parametrize(
    ("model", "peer", "steps", "same"),
    [
        ("demo", "eager", 20, True),
        ("mine", "eager", 20, False),
        ("demo", "kdrt", 20, False),
        ("demo", "eager", 4, False),
    ],
)
def test_the_work_must_be_the_same(
    tmp_path: Path, model: str, peer: str, steps: int, same: bool
) -> None:
    workload = ImageWorkload(steps=20).model_dump(mode="json")
    before = report(experiment("image").model_copy(update={"workloads": (workload,)}))
    plan = Experiment(
        key="image",
        title="image",
        question="?",
        scenario="SingleStream",
        kind="rows",
        model=Model(
            name=model, bundle=tmp_path, source="demo", random_weights=False, cache=tmp_path
        ),
        workloads=(ImageWorkload(steps=steps),),
        rows=(RowPlan(peer, peer),),
        rounds=1,
    )
    with nullcontext() if same else pytest.raises(BenchmarkError, match="give the same --bundle"):
        check_same_work(before, [plan, replace(plan, key="new")], tmp_path)


def test_images_of_what_was_kept_stay(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, name in ((old, "a.png"), (old, "b.png"), (new, "b.png")):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(str(folder).encode())
    before = report(
        experiment("image", image="images/a.png"), experiment("step", image="images/b.png")
    )
    keep_images(before, old, new)
    assert (new / "images" / "a.png").read_bytes() == str(old).encode()
    assert (new / "images" / "b.png").read_bytes() == str(new).encode()
