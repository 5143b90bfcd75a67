"""What fails a soak, and what does not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kdrt_bench.soak.rude import HELD
from kdrt_bench.soak.server import Sample
from kdrt_bench.soak.verdict import Bounds, Facts, failures, growth, slope


def seen(seconds: float, memory: float = 400.0, **fields: int) -> Sample:
    counts = {"threads": 12, "files": 11, "waiting": 0, "running": 0, "steps": 0}
    return Sample(seconds=seconds, memory=memory, **{**counts, **fields})


def facts(**fields: Any) -> Facts:
    """A soak that passes, but for these."""
    sound: dict[str, Any] = {
        "statuses": {200: 90, 429: 10},
        "problems": {},
        "rude": {"broken JSON": {400: 5}, "vanishes at once": {-1: 5}},
        "capacity": 60.0,
        "throughput": 55.0,
        "before": seen(0),
        "after": seen(700),
        "samples": [seen(second, waiting=30) for second in range(0, 600, 2)],
        "is_same": True,
        "tracebacks": 0,
    }
    return Facts.model_validate({**sound, **fields})


def test_a_sound_soak_passes() -> None:
    assert failures(facts(), Bounds()) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"statuses": {429: 100}}, "no request was accepted"),
        ({"statuses": {200: 1, 500: 2}}, "2 honest requests ended with 500"),
        ({"statuses": {200: 1, 400: 1}}, "1 honest request ended with 400"),
        ({"problems": {"no answer: ReadError": 1}}, "1 of the answers: no answer: ReadError"),
        ({"rude": {"broken JSON": {500: 3}}}, "3 clients .broken JSON. got the status 500"),
        ({"rude": {"stalls": {HELD: 2}}}, "never let go 2 clients .stalls."),
        ({"throughput": 29.0}, "29 steps a second under load, and 60 without"),
        ({"after": seen(700, waiting=1)}, "1 image waiting and 0 running"),
        ({"after": seen(700, running=2)}, "0 images waiting and 2 running"),
        ({"after": seen(700, threads=21)}, "9 threads more than before"),
        ({"after": seen(700, files=20)}, "9 open files more than before"),
        ({"after": seen(700, memory=430.0)}, "memory is 430 MiB afterwards"),
        ({"is_same": False}, "not the one made before"),
        ({"tracebacks": 1}, "1 traceback in"),
        ({"samples": []}, "nothing was seen"),
    ],
)
def test_each_fault_is_a_reason(fields: dict[str, Any], reason: str) -> None:
    (found,) = failures(facts(**fields), Bounds())
    assert re.search(reason, found)


def test_refusals_are_no_faults() -> None:
    statuses = {200: 1, 429: 5, 503: 2, 504: 1}
    assert failures(facts(statuses=statuses, rude={"x": {503: 1}}), Bounds()) == []


def test_memory_that_grows_late_is_a_fault() -> None:
    """By 6 MiB a minute, which is 30 in the half that counts; growth in the first half is not."""
    early = [seen(s, memory=300 + min(s, 300) / 10) for s in range(0, 600, 2)]
    late = [seen(s, memory=300 + max(0, s - 300) / 10) for s in range(0, 600, 2)]
    assert failures(facts(samples=early), Bounds(plateau=2)) == []
    assert growth(late) == pytest.approx(6.0)
    (found,) = failures(facts(samples=late, after=seen(700, memory=330)), Bounds(plateau=2))
    assert "grew by 6.0 MiB a minute" in found


def test_the_slope_of_a_line_with_an_outlier() -> None:
    x = list(range(20))
    y = [3.0 * each + 1 for each in x]
    y[7] = 1e6
    assert slope(x, y) == pytest.approx(3.0)
    assert slope([1.0], [5.0]) == 0.0
