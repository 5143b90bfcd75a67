"""The report: one JSON document, and beside it a page and images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from kdrt_bench.jobs import Strict
from kdrt_bench.likeness import Likeness
from kdrt_bench.machine import MachineReport
from kdrt_bench.statistics import Percentiles, Ratio

SCHEMA_VERSION = 1


class Row(Strict):
    """One peer at one point of an experiment.

    Attributes:
        label: unique among the rows of a point.
        lossy: it computes in less than float32: no equal of the others.
        samples: seconds of every counted run, in order; of a server, of every request.
        cpu: processor seconds of a run, median.
        idle_cpu: most processor seconds the process used between two of its runs.
        faults: pages read from a disk during counted runs; not 0 means that memory was short.
        stages: seconds by stage, medians; what is missing is the host's own.
        first_call: seconds, with whatever is compiled in it.
        memory: bytes: after loading, the peak of the process, the peak after loading.
        gflops: what the workload asks for over the median time.
        of_peak: that, of what the machine can do.
        likeness: to the anchor.
        speedup: how many times the anchor takes what this row takes.
        image: file beside the report.
        failed: why there are no figures.
        unavailable: that is so because the peer is not installed or cannot do this.
    """

    label: str
    peer: str
    title: str
    lossy: bool = False
    options: dict[str, str] = Field(default_factory=dict)
    point: float = 0
    settings: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    samples: tuple[float, ...] = ()
    seconds: Percentiles | None = None
    images_per_second: float | None = None
    cpu: float | None = None
    idle_cpu: float | None = None
    faults: int = 0
    stages: dict[str, float] = Field(default_factory=dict)
    energy: float | None = None
    load: float | None = None
    first_call: float | None = None
    memory_loaded: int | None = None
    memory_peak: int | None = None
    memory_running: int | None = None
    device_memory_peak: int | None = None
    calls: dict[str, int] = Field(default_factory=dict)
    gflops: float | None = None
    of_peak: float | None = None
    likeness: Likeness | None = None
    speedup: Ratio | None = None
    image: str | None = None
    failed: str | None = None
    unavailable: bool = False


class ExperimentReport(Strict):
    """One experiment; see :class:`kdrt_bench.suites.Experiment`.

    Attributes:
        started: when it began, in UTC; None in reports made before version 0.3.
        kdrt: version and commit of the kdrt that it measured; None in those reports too.
        load: load average of the machine when that run began; None if it was not recorded.
        again: whether ``kdrt bench --update`` measured it again after the report was made.
    """

    key: str
    title: str
    question: str
    scenario: str
    kind: str
    model: str
    anchor: str
    axis: str
    points: tuple[float, ...]
    workloads: tuple[dict[str, object], ...]
    gflop: tuple[float | None, ...]
    rows: tuple[Row, ...]
    started: str | None = None
    kdrt: str | None = None
    load: float | None = None
    again: bool = False

    def at(self, point: float) -> Iterator[Row]:
        """The rows of a point."""
        return (row for row in self.rows if row.point == point)


class Report(Strict):
    """A whole run."""

    schema_version: int = SCHEMA_VERSION
    suite: str
    started: str
    seconds: float
    threads: int
    machine: MachineReport
    peers: dict[str, str]
    experiments: tuple[ExperimentReport, ...]

    def failed(self) -> list[Row]:
        """Rows without figures that should have some."""
        return [
            row
            for each in self.experiments
            for row in each.rows
            if row.failed and not row.unavailable
        ]


def read_report(path: Path) -> Report:
    """Read a report's JSON.

    Raises:
        OSError: there is no such file.
        pydantic.ValidationError: it is no report of this version.
    """
    return Report.model_validate_json(path.read_text(encoding="utf-8"))
