"""``/docs``: nothing on the page comes from elsewhere."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from kdrt.serve.api_docs import PATHS
from kdrt.serve.app import create_app
from kdrt.serve.auth import Keys
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings
from tests.support.serving import client_of


def test_the_page_names_files_of_its_own_only(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) >= 4
    assert not any(":" in name or name.startswith("/") for name in named)
    assert all(client.get(f"/{name}").status_code == 200 for name in named)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_policy_keeps_it_from_asking_others(client: TestClient, path: str) -> None:
    policy = client.get(path).headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "http" not in policy


def test_it_needs_no_key(service: ImageService) -> None:
    settings = ServerSettings(keys=Keys("0123456789abcdef"))
    with client_of(create_app(service, settings)) as locked:
        assert {locked.get(path).status_code for path in PATHS} == {200}
        assert locked.get("/docs/other").status_code == 401
