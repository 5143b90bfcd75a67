"""Metrics of all processes: the front counts requests and images, each worker what it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from kdrt.serve.metrics import Metrics
from kdrt.serve.workers.pool import WorkerPool

OF_THE_FRONT = frozenset(
    {
        "kdrt_images_waiting",
        "kdrt_images_running",
        "kdrt_images",
        "kdrt_queue_seconds",
        "kdrt_request_seconds",
        "kdrt_errors",
    }
)
"""What only the front can count: it has the queue, and a request may have had several workers."""

OF_EACH_PROCESS = "process_"
"""How the names of families begin that every process has."""


class PoolMetrics(Metrics):
    """Those of a front and its workers. What a worker tells has the label ``worker``.

    Args:
        pool: the workers.
    """

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__()
        self._pool = pool

    def text(self) -> bytes:
        """See `Metrics`."""
        told = {worker.name: worker.figures for worker in self._pool.workers}
        families = merged(self.registry.collect(), told)
        return generate_latest(Collected([*families, *_of_the_pool(self._pool)]))


def merged(front: Iterable[Metric], workers: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """Each family once: samples of the front, and those of the workers with their names.

    Args:
        front: its families; of what only workers do, they hold nothing.
        workers: the families of each, by its name.
    """
    families: dict[str, Metric] = {}
    for family in front:
        if family.name in OF_THE_FRONT or family.name.startswith(OF_EACH_PROCESS):
            families[family.name] = _like(family)
            families[family.name].samples += family.samples
    for name, told in workers.items():
        for family in told:
            if family.name in OF_THE_FRONT:
                continue
            samples = families.setdefault(family.name, _like(family)).samples
            samples += [
                sample._replace(labels={**sample.labels, "worker": name})
                for sample in family.samples
            ]
    return list(families.values())


def _like(family: Metric) -> Metric:
    """The same family without samples."""
    return Metric(family.name, family.documentation, family.type, family.unit)


def _of_the_pool(pool: WorkerPool) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "kdrt_worker_ready", "Whether a worker is loaded and warm.", labels=["worker"]
    )
    restarts = CounterMetricFamily(
        "kdrt_worker_restarts", "How often a worker was started again.", labels=["worker"]
    )
    are_ready = {worker.name for worker in pool.workers if worker.is_ready}
    for name, count in pool.restarts.items():
        ready.add_metric([name], float(name in are_ready))
        restarts.add_metric([name], count)
    yield ready
    yield restarts


@dataclass
class Collected:
    """Families that were collected, for `generate_latest`."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families
