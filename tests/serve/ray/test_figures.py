"""What Prometheus is told by a front; no Ray is needed."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kdrt.serve.metrics import Metrics
from kdrt.serve.ray.figures import FrontMetrics


def samples(metrics: Metrics) -> dict[str, float]:
    """By their names."""
    text = metrics.text().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_only_replicas_count_is_left_out() -> None:
    metrics = FrontMetrics()
    model = metrics.model("demo", lambda: 3, lambda: 2)
    model.made(5, 1.0)
    metrics.failed("queue_full")
    metrics.residency.reloaded("demo", "failed")
    told = samples(metrics)
    assert told["kdrt_images_waiting"] == 3
    assert told["kdrt_images_total"] == 5
    assert told["kdrt_request_seconds_count"] == 1
    assert told["kdrt_errors_total"] == told["kdrt_model_reloads_total"] == 1
    assert told["process_resident_memory_bytes"] > 0
    of_replicas = ("kdrt_tick_", "kdrt_stage_", "kdrt_model_load", "kdrt_models_", "kdrt_cuda_")
    assert not [name for name in told if name.startswith(of_replicas)]
