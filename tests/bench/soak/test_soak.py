"""A short soak of a real server, and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdrt_bench.soak.honest import NO_ANSWER, Answered
from kdrt_bench.soak.report import SoakReport, markdown, plot, report_of
from kdrt_bench.soak.rude import LEFT, Rudeness
from kdrt_bench.soak.run import Seen, Settings
from kdrt_bench.soak.server import Sample
from kdrt_bench.soak.verdict import Bounds, Facts

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


@pytest.fixture
def report() -> SoakReport:
    """Of four requests: one was lost, one failed, and two took 1 and 3 seconds."""
    ends = ((200, 1.0), (200, 3.0), (500, 0.1), (NO_ANSWER, 9.0))
    answered = tuple(
        Answered(dialect="native", status=status, due=0.0, latency=latency)
        for status, latency in ends
    )
    rude = tuple(
        Rudeness(kind="broken JSON", status=status, seconds=seconds)
        for status, seconds in ((400, 0.1), (400, 0.3), (LEFT, 0.2))
    )
    samples = tuple(
        Sample(
            seconds=second, memory=100.0 + second, threads=1, files=1, waiting=0, running=0, steps=0
        )
        for second in range(10)
    )
    facts = Facts(
        statuses={NO_ANSWER: 1, 200: 2, 500: 1},
        problems={},
        rude={"broken JSON": {400: 2, LEFT: 1}},
        capacity=1.0,
        throughput=1.0,
        before=samples[0],
        after=samples[-1],
        samples=samples,
        is_same=True,
        tracebacks=0,
    )
    seen = Seen(facts=facts, answered=answered, left_out=0, offered=1.0, seconds=10.0, rude=rude)
    settings = Settings(seconds=10.0, capacity_seconds=1.0)
    return report_of(seen, settings, Bounds(), "--max-waiting 4")


@pytest.mark.slow
@pytest.mark.parametrize("manners", ["--no-rude", "--rude"])
def test_a_short_soak_passes(demo_bundle: Path, tmp_path: Path, manners: str) -> None:
    """Of so short a time the growth of memory says nothing: it has not come to its plateau."""
    command = [sys.executable, str(BENCHMARK), str(demo_bundle), "--minutes", "0.2", manners]
    done = subprocess.run(
        [*command, "--growth", "1e9", "-o", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failures"] == []
    assert len({*tmp_path.glob("soak*")}) == 3


def test_a_report_says_why_it_failed(report: SoakReport) -> None:
    text = markdown(report)
    assert "**Failed**" in text
    assert "- 1 honest request ended with 500" in text
    assert "| requests | none | 200 | 500 | accepted, p50 | p90 | p99 |" in text
    assert "| native | 1 | 2 | 1 | 2.00 s | 2.80 s | 2.98 s |" in text
    assert "| broken JSON | 400: 2, left: 1 | 300 ms |" in text
    assert report.growth == pytest.approx(60.0)


def test_the_plot_is_an_svg_of_its_own(report: SoakReport) -> None:
    drawn = plot(report)
    assert "<svg" in drawn
    assert "MiB resident" in drawn
    assert drawn == plot(report)
