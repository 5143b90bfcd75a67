"""The rows of in-flight batching, measured on a tiny model: every figure is one of what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt_bench import in_flight
from kdrt_bench.in_flight import measure_in_flight
from tests.support.tiny_model import tiny_model


def test_every_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "AT_ONCE", (1, 3))
    monkeypatch.setattr(in_flight, "STEPS", (2, 3))
    pipe = tiny_model(tmp_path).pipeline
    rows = measure_in_flight(pipe, steps=2, rounds=2, requests=3)
    assert [(row.images, row.rows) for row in rows.together] == [(1, 2), (3, 6)]
    assert all(row.per_second > 0 and row.tick > 0 for row in rows.together)
    assert min(rows.lone.batcher, rows.lone.pipeline, rows.lone.ratio) > 0
    assert rows.stream is not None
    for latencies in (rows.stream.batcher, rows.stream.one_at_a_time):
        assert 0 < latencies.p50 <= latencies.p99
    assert measure_in_flight(pipe, steps=2, rounds=1, requests=0).stream is None


def test_one_at_a_time_waits_for_those_before() -> None:
    arrivals = [0.0, 1.0, 1.5, 20.0]
    assert in_flight._queued([3.0, 2.0, 1.0, 4.0], arrivals) == pytest.approx([3.0, 4.0, 4.5, 4.0])
