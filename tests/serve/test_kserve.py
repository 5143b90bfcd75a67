"""KServe's v2 protocol, as far as it is spoken."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

import kdrt
from kdrt.serve.app import create_app
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings
from tests.support.serving import client_of


def test_the_server(client: TestClient) -> None:
    assert client.get("/v2").json() == {
        "name": "kdrt",
        "version": kdrt.__version__,
        "extensions": [],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_model(client: TestClient) -> None:
    told = client.get("/v2/models/demo").json()
    assert told["name"] == "demo"
    inputs = {each["name"]: each["datatype"] for each in told["inputs"]}
    assert (inputs["prompt"], inputs["steps"], inputs["guidance_scale"]) == (
        "BYTES",
        "INT64",
        "FP64",
    )
    assert client.get("/v2/models/demo/ready").json() == {"name": "demo", "ready": True}


def test_an_unknown_model_is_refused_in_the_dialect_of_the_protocol(client: TestClient) -> None:
    for path in ("/v2/models/dmo", "/v2/models/dmo/ready"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("no model 'dmo' is served")


def test_a_model_is_not_ready_before_it_is_loaded(demo_bundle: Path) -> None:
    service = ImageService([ModelSettings(bundle=str(demo_bundle))])
    with client_of(create_app(service)) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/demo/ready"):
            assert client.get(path).status_code == 503
