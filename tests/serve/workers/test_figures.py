"""Metrics of several processes, as Prometheus reads them."""

from __future__ import annotations

import pickle

from prometheus_client.parser import text_string_to_metric_families

from kdrt.serve.metrics import Metrics
from kdrt.serve.workers.figures import PoolMetrics
from kdrt.serve.workers.pool import WorkerPool
from tests.support.serving import until
from tests.support.workers import FakeWorker, spec_of


def of_a_worker(ticks: int) -> Metrics:
    metrics = Metrics()
    model = metrics.model("demo", lambda: 99, lambda: 99)
    model.made(99, 1.0)
    for _ in range(ticks):
        model.ticked(2, 4, 0.1)
    return metrics


def test_each_family_is_told_once_with_the_workers_by_name() -> None:
    pool = WorkerPool([spec_of("0"), spec_of("1")], FakeWorker)
    metrics = PoolMetrics(pool)
    model = metrics.model("demo", lambda: 3, lambda: 2)
    model.made(5, 1.0)
    pool.start(lambda error: None)
    until(lambda: len(pool.workers) == 2)
    for ticks, worker in zip((2, 7), pool.workers, strict=True):
        families = of_a_worker(ticks).registry.collect()
        worker.figures = pickle.loads(pickle.dumps(tuple(families)))  # type: ignore[misc]
    text = metrics.text().decode()
    pool.close()
    assert text.count("# TYPE kdrt_tick_images histogram") == 1
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    of_model = ("model", "demo")
    assert values["kdrt_images_waiting", (of_model,)] == 3
    assert values["kdrt_images_total", (of_model,)] == 5
    assert values["kdrt_tick_images_count", (of_model, ("worker", "0"))] == 2
    assert values["kdrt_tick_images_count", (of_model, ("worker", "1"))] == 7
    assert ("kdrt_tick_images_count", (of_model,)) not in values
    assert values["kdrt_worker_ready", (("worker", "1"),)] == 1
    assert values["kdrt_worker_restarts_total", (("worker", "1"),)] == 0
    for labels in ((), (("worker", "0"),), (("worker", "1"),)):
        assert values["process_resident_memory_bytes", labels] > 0
