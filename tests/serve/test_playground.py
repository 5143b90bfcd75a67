"""What the playground's page gets from the server; ``test_page`` looks at it in a browser."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from kdrt.sampling import SAMPLERS
from kdrt.serve.app import create_app
from kdrt.serve.auth import Keys
from kdrt.serve.playground import FILES
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings
from tests.support.serving import client_of, png

FACTS, READ = "/playground/facts.json", "/playground/read"
PNG = {"content-type": "image/png"}


def read(client: TestClient, data: bytes) -> dict[str, Any]:
    answer = client.post(READ, content=data, headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, data: bytes) -> str:
    answer = client.post(READ, content=data, headers=PNG)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def made(service: ImageService, folder: Path, **fields: Any) -> bytes:
    """The file of an image."""
    file = folder / "made.png"
    service.model().pipe(**{"prompt": "a red circle", "seed": 7, "steps": 2, **fields}).save(file)
    return file.read_bytes()


@pytest.mark.parametrize("path", FILES)
def test_files_come_with_a_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert not any("unsafe" in value or "http" in value for value in policy.values())
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_of_the_page_is_served() -> None:
    there = {file.name for file in files("kdrt.serve").joinpath("page").iterdir()}
    assert set(FILES.values()) == there


def test_the_page_names_only_files_that_are_served(client: TestClient) -> None:
    named = re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text)
    assert len(named) >= 3
    assert {f"/{name}" for name in named} <= FILES.keys()


@pytest.mark.parametrize("path", FILES)
def test_nothing_of_another_host_is_named(client: TestClient, path: str) -> None:
    text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")  # the name of a format
    assert "://" not in text
    assert not re.search(r"<style|\son\w+=|innerHTML|eval\(", text)


def test_the_facts_are_those_of_the_service(client: TestClient, service: ImageService) -> None:
    facts = client.get(FACTS).json()
    manifest = service.model().bundle.manifest
    (model,) = facts["models"]
    assert model == {
        "name": "demo",
        "width": 64,
        "height": 64,
        "multiple": manifest.latents.scale,
        "guidance": manifest.default_guidance_scale,
        "takes_image": True,
        "loras": [],
    }
    assert [each["name"] for each in facts["samplers"]] == list(SAMPLERS)
    assert {"name": "euler_ancestral", "label": "Euler a"} in facts["samplers"]
    assert facts["defaults"]["sampler"] in SAMPLERS
    assert facts["limits"]["steps"] == service.settings.limits.steps


def test_the_files_need_no_key_and_the_facts_do(service: ImageService) -> None:
    with client_of(create_app(service, ServerSettings(keys=Keys("0123456789abcdef")))) as client:
        assert {client.get(path).status_code for path in FILES} == {200}
        assert client.get(FACTS).status_code == 401
        assert client.post(READ, content=b"", headers=PNG).status_code == 401


def test_an_image_tells_the_request_that_made_it(
    client: TestClient, service: ImageService, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "negative_prompt": "blue",
        "guidance_scale": 2.5,
        "guidance_interval": (0.3, 5.4),
    }
    told = read(client, made(service, tmp_path, **fields))
    assert (told["model"], told["left_out"]) == ("demo", {})
    again = client.post("/v1/generate", json=told["fields"]).json()
    alone = service.model().pipe("a red circle", seed=7, steps=2, **fields)
    assert again["images"][0]["infotext"] == str(alone.infotexts[0])
    assert told["fields"]["guidance_interval"] == [0.3, 5.4]


def test_what_json_cannot_hold_is_said(
    client: TestClient, service: ImageService, tmp_path: Path
) -> None:
    told = read(client, made(service, tmp_path, seed=2**53 + 1))
    assert told["left_out"] == {"Seed": str(2**53 + 1)}
    assert "seed" not in told["fields"]


def test_an_image_to_begin_with_is_not_in_the_text(
    client: TestClient, service: ImageService, tmp_path: Path
) -> None:
    image = Image.new("RGB", (64, 64))
    told = read(client, made(service, tmp_path, image=image, strength=0.5))
    assert "strength" not in told["fields"]
    assert "Denoising strength" in told["left_out"]


def test_an_image_that_says_nothing(client: TestClient) -> None:
    message = refused(client, png(Image.new("RGB", (8, 8))))
    assert message == "this image does not say how it was made"


@pytest.mark.parametrize("data", [b"", b"%PDF", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_a_file_that_is_no_image(client: TestClient, data: bytes) -> None:
    message = refused(client, data)
    assert "it is no image" in message
    assert "/" not in message


def test_an_image_with_too_many_pixels_is_not_decoded(client: TestClient) -> None:
    assert "pixels" in refused(client, png(Image.new("1", (8192, 8192))))


def test_only_images_are_read(client: TestClient) -> None:
    assert client.post(READ, content=b"{}").status_code == 415
