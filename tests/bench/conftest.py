"""Jobs for fake workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt_bench.jobs import BenchJob, ImageWorkload, Model
from tests.support.bench_workers import MakeJob, Turns


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(name="none", bundle=tmp_path, source="none", cache=tmp_path / "cache")


@pytest.fixture
def job(model: Model, tmp_path: Path) -> MakeJob:
    """A job of a fake worker, its options as keywords."""

    def make(name: str, workloads: int = 1, **options: object) -> BenchJob:
        given = {"name": name, "log": tmp_path / "log", "seconds": 0.2, "value": 0.5, **options}
        return BenchJob(
            peer="kdrt",
            options={key: str(value) for key, value in given.items()},
            model=model,
            workloads=(ImageWorkload(),) * workloads,
            threads=1,
            folder=tmp_path / "out" / name,
        )

    return make


@pytest.fixture
def turns(tmp_path: Path) -> Turns:
    """What fake workers did, in order."""
    return lambda: (tmp_path / "log").read_text().splitlines()
