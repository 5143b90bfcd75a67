"""One service with the demo model for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kdrt.serve.app import create_app
from kdrt.serve.limits import RequestLimits
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.serving import client_of

SETTINGS = ServiceSettings(
    limits=RequestLimits(pixels=128 * 128, steps=60, images=4, prompt=500),
    max_waiting=4,
    threads=1,
)


@pytest.fixture(scope="module")
def service(demo_bundle: Path) -> Iterator[ImageService]:
    made = ImageService([ModelSettings(bundle=str(demo_bundle))], SETTINGS)
    made.load()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service: ImageService) -> Iterator[TestClient]:
    with client_of(create_app(service)) as client:
        yield client
