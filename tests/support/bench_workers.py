"""Starts fake workers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kdrt_bench.conductor import Worker
from kdrt_bench.jobs import BenchJob

MakeJob = Callable[..., BenchJob]
Turns = Callable[[], list[str]]

FAKE = (sys.executable, str(Path(__file__).parent / "fake_worker.py"))


def start(job: BenchJob) -> Worker:
    """A fake worker."""
    return Worker(job, FAKE, patience=30)
