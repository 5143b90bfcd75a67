"""The mix of requests, in the dialects that the server speaks, and what makes an answer to each of
them whole."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

PROMPT = "a red circle on a blue background"
SIDE = 64
"""Pixels of every image, in both directions: the demo model's own size."""

_STATUS_OF_CODE = {"deadline_exceeded": 504, "shutting_down": 503, "out_of_memory": 503}
"""What an error in a stream, whose status was 200, would have been answered with."""


@dataclass(frozen=True)
class ClientRequest:
    """A request as a client of some dialect sends it.

    Attributes:
        dialect: what reports call it.
        path: of the server.
        images: that the answer must hold.
        share: of all requests.
        body: its JSON, or the texts of its form.
        files: of its form; a request without files is JSON.
        is_stream: answered with server-sent events.
    """

    dialect: str
    path: str
    images: int
    share: float
    body: Mapping[str, Any]
    files: Mapping[str, tuple[str, bytes, str]] = field(default_factory=dict)
    is_stream: bool = False

    def seeded(self, seed: int) -> dict[str, Any]:
        """The body with a seed."""
        return {**self.body, "seed": seed}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an answer was.

    Attributes:
        status: of HTTP; where a stream ended with an error, that of the error.
        problem: what is wrong with an answer that claims success; None if nothing is.
        images: the bytes of its images.
    """

    status: int
    problem: str | None = None
    images: tuple[bytes, ...] = ()


def outcome_of(ask: ClientRequest, status: int, body: bytes) -> Outcome:
    """Judge an answer that has come to its end. Of every request there must be exactly one answer:
    all its images, each of which can be decoded, or one error."""
    if status != 200:
        return Outcome(status)
    try:
        if ask.is_stream:
            return _of_stream(ask, body)
        return _of_images(ask, _IMAGES_OF[ask.path](json.loads(body)))
    except (KeyError, TypeError, ValueError) as error:
        return Outcome(200, f"the answer cannot be read: {type(error).__name__}")


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events. Comments, which keep a connection open, are left out.

    Raises:
        ValueError: the stream breaks off within an event, or the data are no JSON.
    """
    text = body.decode()
    if not text.endswith("\n\n"):
        raise ValueError("the stream breaks off")
    events = []
    for block in text.split("\n\n"):
        lines = [line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")]
        if lines:
            told = dict(lines)
            events.append((told.get("event", "message"), json.loads(told["data"])))
    return events


def _of_stream(ask: ClientRequest, body: bytes) -> Outcome:
    events = events_of(body)
    ends = [(name, data) for name, data in events if name in ("error", *_ENDS)]
    if len(ends) != 1 or events[-1][0] != ends[0][0]:
        return Outcome(200, f"a stream with {len(ends)} ends")
    name, data = ends[0]
    if name == "error":
        return Outcome(_STATUS_OF_CODE.get(data["error"]["code"], 500))
    return _of_images(ask, _ENDS[name](data))


def _of_images(ask: ClientRequest, encoded: list[str]) -> Outcome:
    images = tuple(base64.b64decode(each) for each in encoded)
    if len(images) != ask.images:
        return Outcome(200, f"{len(images)} images in place of {ask.images}", images)
    for data in images:
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                size = image.size
        except (OSError, SyntaxError):
            return Outcome(200, "an image that cannot be decoded", images)
        if size != (SIDE, SIDE):
            return Outcome(200, f"an image of {size[0]}x{size[1]}", images)
    return Outcome(200, None, images)


_NATIVE, _OPENAI, _EDITS = "/v1/generate", "/v1/images/generations", "/v1/images/edits"
_TXT2IMG, _IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"


def _of_native(answer: Any) -> list[str]:
    return [each["image"] for each in answer["images"]]


def _of_openai(answer: Any) -> list[str]:
    return [each["b64_json"] for each in answer["data"]]


def _of_a1111(answer: Any) -> list[str]:
    return list(answer["images"])


_IMAGES_OF: Mapping[str, Callable[[Any], list[str]]] = {
    _NATIVE: _of_native,
    _OPENAI: _of_openai,
    _EDITS: _of_openai,
    _TXT2IMG: _of_a1111,
    _IMG2IMG: _of_a1111,
}
_ENDS: Mapping[str, Callable[[Any], list[str]]] = {
    "result": _of_native,
    "image_generation.completed": lambda data: [data["b64_json"]],
}
"""The last event of a stream that succeeded."""


def _square(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(data, "PNG")
    return data.getvalue()


def _half_white() -> bytes:
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    data = io.BytesIO()
    mask.save(data, "PNG")
    return data.getvalue()


_START = base64.b64encode(_square("blue")).decode()
_SIZE = f"{SIDE}x{SIDE}"
_FORM = {
    "image": ("image.png", _square("blue"), "image/png"),
    "mask": ("mask.png", _half_white(), "image/png"),
}

MIX = (
    ClientRequest("OpenAI", _OPENAI, 1, 0.20, {"prompt": PROMPT, "steps": 20, "size": _SIZE}),
    ClientRequest(
        "OpenAI", _OPENAI, 2, 0.10, {"prompt": PROMPT, "steps": 8, "size": _SIZE, "n": 2}
    ),
    ClientRequest(
        *("OpenAI, stream", _OPENAI, 1, 0.10),
        {"prompt": PROMPT, "steps": 12, "size": _SIZE, "stream": True, "partial_images": 2},
        is_stream=True,
    ),
    ClientRequest("OpenAI, edit", _EDITS, 1, 0.10, {"prompt": PROMPT, "steps": 12}, files=_FORM),
    ClientRequest(
        "native", _NATIVE, 3, 0.10, {"prompt": PROMPT, "steps": 6, "images_per_prompt": 3}
    ),
    ClientRequest(
        *("native, stream", _NATIVE, 1, 0.20),
        {"prompt": PROMPT, "steps": 16, "sampler": "euler_ancestral", "stream": True},
        is_stream=True,
    ),
    ClientRequest(
        *("A1111", _TXT2IMG, 2, 0.10),
        {"prompt": PROMPT, "steps": 10, "sampler_name": "Euler a", "batch_size": 2},
    ),
    ClientRequest(
        *("A1111, img2img", _IMG2IMG, 1, 0.10),
        {"prompt": PROMPT, "steps": 15, "init_images": [_START], "denoising_strength": 0.6},
    ),
)
"""Of 6 to 20 steps and one to three images, for a model of 64x64 pixels."""
