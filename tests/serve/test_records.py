"""Images of every interface say how they were made, as sd-parsers reads it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sd_parsers import ParserManager
from starlette.testclient import TestClient

from tests.support.serving import events_of, png

PROMPT, NEGATIVE = "a red circle, round", "dark"
START = png(Image.new("RGB", (64, 64), "blue"))
MASK = png(Image.new("L", (64, 64), 255))
START_TEXT, MASK_TEXT = (base64.b64encode(data).decode() for data in (START, MASK))

NATIVE = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "seed": 7,
    "steps": 4,
    "sampler": "euler_ancestral",
    "guidance_scale": 3.5,
}
A1111 = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "seed": 7,
    "steps": 4,
    "sampler_name": "Euler a",
    "cfg_scale": 3.5,
}
FILES = {"image": ("i.png", START, "image/png"), "mask": ("m.png", MASK, "image/png")}
START_FIELDS = {"image": START_TEXT, "mask_image": MASK_TEXT, "strength": 1.0}


def native(client: TestClient, **fields: Any) -> str:
    answer = client.post("/v1/generate", json={**NATIVE, **fields})
    if fields.get("stream"):
        return str(events_of(answer.text)[-1][1]["images"][0]["image"])
    return str(answer.json()["images"][0]["image"])


def openai(client: TestClient, **fields: Any) -> str:
    answer = client.post("/v1/images/generations", json={**NATIVE, **fields})
    if fields.get("stream"):
        return str(events_of(answer.text)[-1][1]["b64_json"])
    return str(answer.json()["data"][0]["b64_json"])


def edit(client: TestClient) -> str:
    fields = {name: str(value) for name, value in {**NATIVE, "strength": 1.0}.items()}
    answer = client.post("/v1/images/edits", data=fields, files=FILES)
    return str(answer.json()["data"][0]["b64_json"])


def a1111(client: TestClient, path: str, **fields: Any) -> str:
    answer = client.post(f"/sdapi/v1/{path}", json={**A1111, **fields})
    return str(answer.json()["images"][0])


IMAGES = {
    "native": lambda client: native(client),
    "native, streamed": lambda client: native(client, stream=True, preview_every=0),
    "native, from an image": lambda client: native(client, **START_FIELDS),
    "native, JPEG": lambda client: native(client, output_format="jpeg"),
    "native, WebP": lambda client: native(client, output_format="webp"),
    "OpenAI": lambda client: openai(client),
    "OpenAI, streamed": lambda client: openai(client, stream=True, partial_images=1),
    "OpenAI, edit": edit,
    "A1111": lambda client: a1111(client, "txt2img"),
    "A1111, from an image": lambda client: a1111(
        client, "img2img", init_images=[START_TEXT], mask=MASK_TEXT, denoising_strength=1.0
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_says_how_it_was_made(client: TestClient, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(base64.b64decode(IMAGES[kind](client)))
    read = ParserManager().parse(file)
    assert read is not None
    assert [prompt.value for prompt in read.prompts] == [PROMPT]
    assert [prompt.value for prompt in read.negative_prompts] == [NEGATIVE]
    (sampler,) = read.samplers
    assert sampler.name == "Euler a"
    parameters = {name: sampler.parameters[name] for name in ("seed", "steps", "cfg_scale")}
    assert parameters == {"seed": "7", "steps": "4", "cfg_scale": "3.5"}
    assert sampler.model is not None
    assert sampler.model.name == "demo"
