"""Whether it lives, whether it is ready, and what it tells Prometheus."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from kdrt.serve.app import create_app
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.serving import client_of

STAGES = ("encode", "tick", "decode")


def test_it_is_ready_from_its_warm_up_to_its_end(demo_bundle: Path) -> None:
    settings = ServiceSettings(warmup=((32, 32),), threads=1)
    service = ImageService([ModelSettings(bundle=str(demo_bundle))], settings)
    with client_of(create_app(service)) as client:
        statuses = [status(client)]
        service.load()
        statuses.append(status(client))
        service.close()
        statuses.append(status(client))
    assert statuses == [(200, 503, "not_ready"), (200, 200, None), (200, 503, "shutting_down")]


def status(client: TestClient) -> tuple[int, int, str | None]:
    ready = client.get("/readyz")
    error = ready.json().get("error", {}).get("code")
    return client.get("/healthz").status_code, ready.status_code, error


def test_metrics_are_those_of_prometheus(client: TestClient) -> None:
    body = {"prompt": "a red circle", "steps": 3, "images_per_prompt": 2}
    assert client.post("/v1/generate", json=body).status_code == 200
    assert client.post("/v1/generate", json={"steps": 1}).status_code == 400
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }
    assert samples["kdrt_images_total", "demo"] == 2
    assert samples["kdrt_images_waiting", "demo"] == samples["kdrt_images_running", "demo"] == 0
    assert samples["kdrt_tick_images_sum", "demo"] == 6
    assert samples["kdrt_tick_rows_sum", "demo"] == 12
    assert samples["kdrt_request_seconds_count", "demo"] == 1
    assert (
        0 < samples["kdrt_queue_seconds_sum", "demo"] < samples["kdrt_request_seconds_sum", "demo"]
    )
    stages = {stage: samples["kdrt_stage_seconds_count", "demo", stage] for stage in STAGES}
    assert stages == {"encode": 1, "tick": 3, "decode": 1}
    assert samples["kdrt_errors_total", "invalid_request"] == 1
    assert samples["process_resident_memory_bytes",] > 10**7
