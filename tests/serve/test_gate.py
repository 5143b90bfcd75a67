"""Who is let in, and with how much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from kdrt.serve.app import create_app
from kdrt.serve.auth import Keys
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings
from tests.support.serving import client_of

KEY = "0123456789abcdef"
BODY = {"prompt": "a red circle", "steps": 1}


@pytest.fixture(scope="module")
def locked(service: ImageService) -> Iterator[TestClient]:
    """A server that needs a key."""
    with client_of(create_app(service, ServerSettings(keys=Keys(KEY)))) as client:
        yield client


def test_a_key_opens(locked: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    assert locked.post("/v1/generate", json=BODY, headers=headers).status_code == 200
    assert locked.get("/v1/models", headers={"authorization": f"bearer  {KEY}"}).status_code == 200


def test_a_key_opens_as_the_password_of_whoever_it_may_be(locked: TestClient) -> None:
    for name in ("", "somebody"):
        assert locked.get("/v1/models", auth=(name, KEY)).status_code == 200
    for pair in (("somebody", f"{KEY}x"), (KEY, ""), (KEY, "somebody")):
        assert locked.get("/v1/models", auth=pair).status_code == 401


@pytest.mark.parametrize("header", [None, "", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v2", "/v1/images/generations"])
def test_without_the_right_key_nothing_opens(
    locked: TestClient, header: str | None, path: str
) -> None:
    answer = locked.get(path, headers={} if header is None else {"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text
    assert "demo" not in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_whoever_watches_needs_no_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_with_keys_it_answers_by_any_name(locked: TestClient) -> None:
    headers = {"host": "images.example.org", "authorization": f"Bearer {KEY}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("example.org", 403),
        ("example.org:8000", 403),
        ("127.0.0.1.example.org", 403),
        ("", 403),
    ],
)
def test_without_keys_it_answers_by_the_names_of_the_machine(
    client: TestClient, host: str, status: int
) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1", 200), ("https://example.org", 403), ("null", 403)],
)
def test_without_keys_pages_of_other_sites_are_refused(
    client: TestClient, origin: str, status: int
) -> None:
    answer = client.post("/v1/generate", json=BODY, headers={"origin": origin})
    assert answer.status_code == status


@pytest.fixture(scope="module")
def narrow(service: ImageService) -> Iterator[TestClient]:
    """A server that reads 1000 bytes."""
    with client_of(create_app(service, ServerSettings(max_body=1000))) as client:
        yield client


def test_a_body_that_is_too_large_is_not_read(narrow: TestClient) -> None:
    body = {"prompt": "x" * 1000}
    answer = narrow.post("/v1/generate", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_say_how_large_it_is_is_counted(narrow: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    answer = narrow.post("/v1/generate", content=parts(), headers=headers)
    assert answer.status_code == 413


def test_a_form_that_is_too_large_is_not_read(narrow: TestClient) -> None:
    files = {"image": ("a.png", b"x" * 2000, "image/png")}
    answer = narrow.post("/v1/images/edits", data={"prompt": "x"}, files=files)
    assert answer.status_code == 413


def test_a_body_within_it_is_read(narrow: TestClient) -> None:
    assert narrow.post("/v1/generate", json=BODY).status_code == 200
