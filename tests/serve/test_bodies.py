"""Bodies of very many values, or of very large ones."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from starlette.testclient import TestClient

from kdrt.serve import bodies

NATIVE, OPENAI, WEB_UI = "/v1/generate", "/v1/images/generations", "/sdapi/v1/txt2img"
MANY = 2**20


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (NATIVE, {"sigmas": [""] * MANY}),
        (NATIVE, {"sampler_options": {"x": [[0] * 10] * (MANY // 20)}}),
        (OPENAI, {"lora": [1] * MANY}),
        (OPENAI, {str(number): 0 for number in range(12_000)}),
        (WEB_UI, {"init_images": [1] * MANY}),
        (WEB_UI, {"override_settings": {f"save_{number}": 0 for number in range(12_000)}}),
    ],
)
def test_very_many_values_are_refused_before_each_is_described(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, wrong: dict[str, Any]
) -> None:
    def described(error: pydantic.ValidationError, model: object) -> Exception:
        raise AssertionError(f"{error.error_count()} errors were described")

    monkeypatch.setattr(bodies, "_sentence", described)
    answer = client.post(path, json={"prompt": "x", **wrong})
    assert answer.status_code == 400
    assert "too many values" in answer.text
    assert len(answer.content) < 1_000


def test_a_text_may_hold_as_many_commas_as_it_likes(client: TestClient) -> None:
    answer = client.post(NATIVE, json={"prompt": "a, " * 15_000})
    assert "prompt has 45000 characters" in answer.json()["error"]["message"]


def test_a_very_long_name_is_cut_short_in_the_answer(client: TestClient) -> None:
    """The sentence is not the server's own."""
    body = {"prompt": "x", "sampler_options": {"x" * MANY: 1}}
    answer = client.post(NATIVE, json=body)
    assert answer.status_code == 400
    assert "has no option" in answer.text
    assert len(answer.content) < 5_000


@pytest.mark.parametrize("path", [NATIVE, OPENAI, WEB_UI])
@pytest.mark.parametrize(
    "value",
    ["1" * 4_299, "1" * 5_000, "[" * 50_000, "[" * 50_000 + "]" * 50_000, json.dumps("x " * MANY)],
    ids=["4299 digits", "5000 digits", "open", "deep", "long"],
)
def test_one_very_large_value_is_refused_in_one_sentence(
    client: TestClient, path: str, value: str
) -> None:
    names = ("steps", "width", "n", "batch_size", "seed", "model", "lora", "unknown")
    for name in names:
        answer = client.post(
            path,
            content=f'{{"prompt": "x", "{name}": {value}}}',
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (400, 404), answer.text[:500]
        assert len(answer.content) < 1_000
