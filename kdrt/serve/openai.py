"""OpenAI's images API: generations, edits and models, as its clients use it unmodified.

What is not done here is refused by name, as is every unknown field: no wish is dropped silently.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

import pydantic
from fastapi import APIRouter, Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

import kdrt
from kdrt.common.validation import MAX_IMAGES, MAX_STEPS, excerpt
from kdrt.pipeline.result import Result
from kdrt.request.fields import FIELDS
from kdrt.serve import responses
from kdrt.serve.bodies import checked_fields, read_form, read_json
from kdrt.serve.errors import Fault, RequestError, UnsupportedError
from kdrt.serve.images import ImageFormat, base64_of, mask_of, read_image
from kdrt.serve.intake import Intake
from kdrt.serve.looks import looked
from kdrt.serve.responses import (
    ANSWER_DOCS,
    ERROR_DOCS,
    EventStream,
    Faults,
    event,
    json_response,
    result_while_connected,
    submitted_while_connected,
)
from kdrt.serve.service import ImageService
from kdrt.serve.submission import Submission

PREFIX = "/v1/images"

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SMALLEST_SIDE = int(FIELDS["width"].minimum or 1)
_LORA_OF_FORM = re.compile(r"lora\[(.+)\]")
"""How OpenAI's Python client writes an object of ``extra_body`` into a form."""

_FILES = ("image", "image[]", "mask")

_CALLED = {"images_per_prompt": "n"}
"""What fields of a request are called here."""


def _described(name: str) -> Any:
    """A field of the request that goes through as it is."""
    return pydantic.Field(default=None, description=FIELDS[name].help)


class ImageBody(pydantic.BaseModel):
    """What generations and edits have in common. Of fields that clients send although they mean
    nothing here, the values are allowed that ask for nothing."""

    model_config = pydantic.ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: Annotated[int | None, pydantic.Field(ge=1, le=MAX_IMAGES)] = None
    size: Annotated[
        str | None, pydantic.Field(description="`WIDTHxHEIGHT` in pixels, or `auto`.")
    ] = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[
        int | None, pydantic.Field(ge=0, le=100, description="Quality of JPEG and WebP.")
    ] = None
    stream: bool | None = None
    partial_images: Annotated[
        int | None,
        pydantic.Field(ge=0, le=3, description="In a stream: unfinished images to be sent."),
    ] = None
    response_format: Literal["b64_json", "url"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None

    negative_prompt: str | None = _described("negative_prompt")
    seed: int | None = _described("seed")
    steps: Annotated[int | None, pydantic.Field(ge=1, le=MAX_STEPS)] = _described("steps")
    num_inference_steps: Annotated[
        int | None, pydantic.Field(ge=1, le=MAX_STEPS, description="The same as steps.")
    ] = None
    guidance_scale: float | None = _described("guidance_scale")
    sampler: str | None = _described("sampler")
    schedule: str | None = _described("schedule")
    lora: Annotated[
        str | list[str] | dict[str, float] | None,
        pydantic.Field(description="Registered LoRAs: a name, several, or names with scales."),
    ] = None


class GenerationBody(ImageBody):
    """Of ``/v1/images/generations``."""

    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid"] | None = None


class EditBody(ImageBody):
    """Of ``/v1/images/edits``, without its files."""

    input_fidelity: Literal["low"] | None = None
    strength: float | None = _described("strength")


Body = TypeVar("Body", bound=ImageBody)


def error_body(fault: Fault) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    body = responses.error_body(fault)
    body["error"]["param"] = _CALLED.get(fault.field or "", fault.field)
    return body


def router(intake: Intake, faults: Faults) -> APIRouter:
    """The routes of the API."""
    service = intake.service
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERROR_DOCS)
    started = int(time.time())

    @routes.get("/models", summary="The models that are served")
    async def models() -> Response:
        listed = [_model(name, started) for name in service.models]
        return json_response({"object": "list", "data": listed})

    @routes.get("/models/{model}", summary="A model")
    async def model(model: str) -> Response:
        return json_response(_model(service.model(model).name, started))

    @routes.post(
        "/images/generations",
        summary="Make images of a prompt",
        responses=ANSWER_DOCS,
        openapi_extra=_docs("application/json", GenerationBody.model_json_schema()),
    )
    async def generations(request: Request) -> Response:
        service.check_open()
        body = await read_json(request, GenerationBody)
        _check(body)
        return await _answer(request, body, lambda: _request_of(body), "image_generation")

    @routes.post(
        "/images/edits",
        summary="Make an image of another, or a part of it anew",
        responses=ANSWER_DOCS,
        openapi_extra=_docs("multipart/form-data", _edit_schema()),
    )
    async def edits(request: Request) -> Response:
        """`mask` says what to repaint: what is transparent in it, or in a mask without
        transparency what is white. Without a mask the whole image is made anew, as far as
        `strength` says."""
        service.check_open()
        form = await read_form(request, files=len(_FILES))
        try:
            body = checked_fields(_texts(form), EditBody)
            files = {
                name: await upload.read()
                for name, upload in form.multi_items()
                if isinstance(upload, UploadFile)
            }
            images = len([name for name, _ in form.multi_items() if name in _FILES[:2]])
        finally:
            await form.close()
        _check(body)
        if images != 1:
            raise UnsupportedError(
                f"one image is edited at a time, and these are {images}", "image"
            )
        return await _answer(request, body, lambda: _edit_of(body, files, service), "image_edit")

    async def _answer(
        request: Request, body: ImageBody, read: Callable[[], kdrt.Request], kind: str
    ) -> Response:
        submission = await submitted_while_connected(
            request,
            intake.submit(read, model=body.model, loras=_loras(body.lora), watch=bool(body.stream)),
        )
        if body.stream:
            partial = body.partial_images or 0
            if not service.model(body.model).may_show_unfinished:
                partial = 0
            return EventStream(
                _events(body, submission, kind, partial),
                submission,
                faults,
                lambda fault: event(error_body(fault), "error"),
            )
        result = await result_while_connected(request, submission)
        return json_response(await asyncio.to_thread(_response, body, result))

    return routes


def _check(body: ImageBody) -> None:
    """Raises UnsupportedError: a field asks for what is not done here."""
    if body.response_format == "url":
        raise UnsupportedError(
            "images are answered with, and not kept to be fetched: response_format must be "
            "'b64_json'",
            "response_format",
        )
    if body.output_compression not in (None, 100) and body.output_format in (None, "png"):
        raise UnsupportedError(
            "PNG has no quality: give output_format 'webp' or 'jpeg', or leave output_compression "
            "out",
            "output_compression",
        )
    if body.partial_images and not body.stream:
        raise RequestError("partial_images come in a stream: send stream true", "partial_images")
    if body.stream and (body.n or 1) > 1:
        raise UnsupportedError("a stream is about one image: leave n out, or send 1", "n")


def _request_of(body: ImageBody) -> kdrt.Request:
    given: dict[str, Any] = {
        name: getattr(body, name)
        for name in (
            *("prompt", "negative_prompt", "seed", "guidance_scale", "sampler", "schedule"),
            *("steps", "strength"),
        )
        if getattr(body, name, None) is not None
    }
    steps = body.num_inference_steps
    if steps is not None and given.setdefault("steps", steps) != steps:
        raise RequestError("steps and num_inference_steps differ: give one of them", "steps")
    if body.n is not None:
        given["images_per_prompt"] = body.n
    if body.size not in (None, "auto"):
        match = _SIZE.fullmatch(body.size)
        if match is None:
            raise RequestError(
                f"size must be 'auto' or WIDTHxHEIGHT, as in '512x768', not {excerpt(body.size)}",
                "size",
            )
        given["width"], given["height"] = int(match[1]), int(match[2])
        if min(given["width"], given["height"]) < _SMALLEST_SIDE:
            raise RequestError(
                f"size must be at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE}, not {body.size}", "size"
            )
    return cast(kdrt.Request, given)


def _edit_of(body: EditBody, files: Mapping[str, bytes], service: ImageService) -> kdrt.Request:
    """A request that begins with an image."""
    limits = service.settings.limits
    request = _request_of(body)
    data = files["image[]"] if "image[]" in files else files["image"]
    image = read_image("image", data, limits.input_pixels)
    request["image"] = image
    if "mask" in files:
        request["mask_image"] = mask_of(read_image("mask", files["mask"], limits.input_pixels))
    if "width" not in request:
        scale = service.model(body.model).bundle.manifest.latents.scale
        request["width"], request["height"] = _fitted(image, limits.pixels, scale)
    return request


def _fitted(image: Image.Image, most_pixels: int, scale: int) -> tuple[int, int]:
    """Width and height of an image, no larger than allowed, in multiples of ``scale``."""
    factor = min(1.0, math.sqrt(most_pixels / (image.width * image.height)))
    width, height = (max(scale, int(side * factor) // scale * scale) for side in image.size)
    return width, height


def _texts(form: FormData) -> dict[str, Any]:
    """The fields of a form that are no files.

    Raises:
        RequestError: a file where there is none, or the other way round.
    """
    texts: dict[str, Any] = {}
    loras: dict[str, str] = {}
    for name, value in form.multi_items():
        lora = _LORA_OF_FORM.fullmatch(name)
        if isinstance(value, UploadFile):
            if name not in _FILES:
                raise RequestError(f"{name[:40]!r} is no field that takes a file", name[:40])
        elif name in _FILES:
            raise RequestError(f"{name} must be a file of the form", name)
        elif lora is not None:
            loras[lora[1]] = value
        else:
            texts[name] = value
    return texts | ({"lora": loras} if loras else {})


def _loras(given: str | list[str] | dict[str, float] | None) -> dict[str, float] | None:
    if given is None or isinstance(given, dict):
        return given
    return dict.fromkeys([given] if isinstance(given, str) else given, 1.0)


def _encoded(body: ImageBody, image: Image.Image, infotext: object = None) -> str:
    quality = None if body.output_compression is None else max(1, body.output_compression)
    return base64_of(image, body.output_format or "png", infotext, quality=quality)


def _response(body: ImageBody, result: Result[Any]) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": body.output_format or "png",
        "size": _size_of(result.images[0]),
        "data": [
            {"b64_json": _encoded(body, image, infotext), "seed": seed}
            for image, infotext, seed in zip(
                result.images, result.infotexts, result.seeds, strict=True
            )
        ],
    }


async def _events(
    body: ImageBody, submission: Submission, kind: str, partial_images: int
) -> AsyncIterator[bytes]:
    """Unfinished images from the running loop, as the VAE sees them, where it can; then the
    finished one."""
    wanted = _steps_to_show(submission.steps, partial_images)
    sent = 0
    async for step in submission:
        if step.index in wanted:
            images = await looked(step.decode)
            if images is None:
                continue
            told = await asyncio.to_thread(_event_data, body, images[0], f"{kind}.partial_image")
            yield event({**told, "partial_image_index": sent}, told["type"])
            sent += 1
    result = await submission.result()
    told = await asyncio.to_thread(
        _event_data, body, result.images[0], f"{kind}.completed", result.infotexts[0]
    )
    yield event({**told, "seed": result.seeds[0]}, told["type"])


def _steps_to_show(steps: int, images: int) -> set[int]:
    """After which steps an unfinished image is sent: evenly spaced, and not after the last."""
    shown = {round(steps * place / (images + 1)) - 1 for place in range(1, images + 1)}
    return {index for index in shown if 0 <= index < steps - 1}


def _event_data(
    body: ImageBody, image: Image.Image, kind: str, infotext: object = None
) -> dict[str, Any]:
    return {
        "type": kind,
        "b64_json": _encoded(body, image, infotext),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": body.output_format or "png",
        "quality": "auto",
        "size": _size_of(image),
    }


def _size_of(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "kdrt"}


def _docs(media_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema of the interface says of a body."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _edit_schema() -> dict[str, Any]:
    schema = EditBody.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": file, "mask": file}
    schema["required"] = [*schema["required"], "image"]
    return schema
