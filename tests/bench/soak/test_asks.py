"""What makes an answer whole: one end, all images, each of which can be decoded."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from PIL import Image

from kdrt_bench.soak.asks import MIX, ClientRequest, outcome_of
from tests.support.serving import png

GOOD = png(Image.new("RGB", (64, 64), "red"))
TEXT = base64.b64encode(GOOD).decode()


def of(dialect: str, images: int = 1) -> ClientRequest:
    (ask,) = (each for each in MIX if (each.dialect, each.images) == (dialect, images))
    return ask


def body(ask: ClientRequest, *images: str) -> bytes:
    """A whole answer with these images."""
    answers: dict[str, Any] = {
        "OpenAI": {"data": [{"b64_json": image} for image in images]},
        "OpenAI, edit": {"data": [{"b64_json": image} for image in images]},
        "native": {"images": [{"image": image} for image in images]},
        "A1111": {"images": list(images)},
        "A1111, img2img": {"images": list(images)},
    }
    return json.dumps(answers[ask.dialect]).encode()


def events(*told: tuple[str, Any]) -> bytes:
    return b"".join(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in told)


def test_the_shares_are_a_whole() -> None:
    assert sum(each.share for each in MIX) == pytest.approx(1)


@pytest.mark.parametrize("ask", [each for each in MIX if not each.is_stream])
def test_a_whole_answer(ask: ClientRequest) -> None:
    outcome = outcome_of(ask, 200, body(ask, *[TEXT] * ask.images))
    assert (outcome.problem, outcome.images) == (None, (GOOD,) * ask.images)


def test_what_is_wrong_with_others() -> None:
    ask = of("native", 3)
    small = base64.b64encode(png(Image.new("RGB", (8, 8)))).decode()
    torn = base64.b64encode(GOOD[:-30]).decode()
    problems = {
        "2 images in place of 3": body(ask, TEXT, TEXT),
        "an image of 8x8": body(ask, TEXT, TEXT, small),
        "an image that cannot be decoded": body(ask, TEXT, torn, TEXT),
        "the answer cannot be read: KeyError": b"{}",
        "the answer cannot be read: JSONDecodeError": b'{"images": [',
    }
    for problem, answer in problems.items():
        assert outcome_of(ask, 200, answer).problem == problem


def test_a_refusal_is_no_problem() -> None:
    outcome = outcome_of(MIX[0], 429, b"whatever")
    assert (outcome.status, outcome.problem, outcome.images) == (429, None, ())


def test_a_stream_has_one_end() -> None:
    ask = of("native, stream")
    step, result = ("step", {"step": 1}), ("result", {"images": [{"image": TEXT}]})
    assert outcome_of(ask, 200, b": waiting\n\n" + events(step, result)).images == (GOOD,)
    problems = {
        "a stream with 0 ends": events(step),
        "a stream with 2 ends": events(step, result, result),
        "a stream with 1 ends": events(result, step),  # and goes on after it
        "the answer cannot be read: ValueError": events(step, result)[:-1],
    }
    for problem, answer in problems.items():
        assert outcome_of(ask, 200, answer).problem == problem


def test_a_stream_of_openai() -> None:
    told = [
        ("image_generation.partial_image", {"b64_json": "x"}),
        ("image_generation.completed", {"b64_json": TEXT}),
    ]
    assert outcome_of(of("OpenAI, stream"), 200, events(*told)).images == (GOOD,)


@pytest.mark.parametrize(("code", "status"), [("deadline_exceeded", 504), ("not_finite", 500)])
def test_an_error_in_a_stream_has_its_status(code: str, status: int) -> None:
    answer = events(("error", {"error": {"code": code}}))
    assert outcome_of(of("native, stream"), 200, answer).status == status
