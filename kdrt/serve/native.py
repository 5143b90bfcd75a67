"""``POST /v1/generate``: every field of a `kdrt.Request` that JSON can hold.

The schema is made from the request's own, so that a new field of a request is one of the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, cast

import pydantic
from fastapi import APIRouter, Request
from starlette.responses import Response

import kdrt
from kdrt.batching.handle import ImageStep
from kdrt.denoise.regional import MAX_REGIONS
from kdrt.pipeline.result import Result
from kdrt.request.fields import FIELDS
from kdrt.request.schema import request_model
from kdrt.serve.bodies import read_json
from kdrt.serve.control_images import FIELD as CONTROL
from kdrt.serve.control_images import ControlBodies, read_controls
from kdrt.serve.errors import LimitError
from kdrt.serve.images import ImageFormat, SeveralImages, base64_of, decoded_base64, read_image
from kdrt.serve.intake import Intake
from kdrt.serve.limits import RequestLimits
from kdrt.serve.looks import looked
from kdrt.serve.responses import (
    ANSWER_DOCS,
    EventStream,
    Faults,
    error_body,
    event,
    json_response,
    result_while_connected,
    submitted_while_connected,
)
from kdrt.serve.submission import Submission

PATH = "/v1/generate"

_IMAGES = ("image", "mask_image")
_PROMPT_IMAGES = ("ip_adapter_image", "ip_adapter_masks")

_Listed = str | list[str | list[str]]
_Pictures = _Listed | dict[str, _Listed]
"""Of one IP-Adapter, or of several by name; see :mod:`kdrt.adapters.image_prompt`."""


class _Region(pydantic.BaseModel):
    """A prompt of its own for a part of the image."""

    model_config = pydantic.ConfigDict(extra="forbid")

    prompt: Annotated[str, pydantic.Field(description="What to draw there.")]
    mask: Annotated[
        str, pydantic.Field(description="Where: white is the region. Base64 or a data URL.")
    ]
    weight: Annotated[
        float, pydantic.Field(description="How much it counts where regions overlap.", gt=0)
    ] = 1.0


class _Options(pydantic.BaseModel):
    """What is asked of the service, and images, which a request's own schema leaves out."""

    model: Annotated[
        str | None, pydantic.Field(description="The model; null is the server's first.")
    ] = None
    lora: Annotated[
        dict[str, float] | None,
        pydantic.Field(description="Registered LoRAs with their scales."),
    ] = None
    image: Annotated[
        str | None,
        pydantic.Field(description=f"{FIELDS['image'].help} Base64 or a data URL."),
    ] = None
    mask_image: Annotated[
        str | None,
        pydantic.Field(description=f"{FIELDS['mask_image'].help} Base64 or a data URL."),
    ] = None
    ip_adapter_image: Annotated[
        _Pictures | None,
        pydantic.Field(description=f"{FIELDS['ip_adapter_image'].help} Base64 or a data URL."),
    ] = None
    ip_adapter_masks: Annotated[
        _Pictures | None,
        pydantic.Field(description=f"{FIELDS['ip_adapter_masks'].help} Base64 or a data URL."),
    ] = None
    regions: Annotated[
        list[_Region] | None,
        pydantic.Field(description="Prompts of their own for parts of the image."),
    ] = None
    control: Annotated[
        ControlBodies | None,
        pydantic.Field(description="Images that say where things are, for the model's controls."),
    ] = None
    output_format: Annotated[ImageFormat, pydantic.Field(description="Of the images.")] = "png"
    quality: Annotated[
        int | None, pydantic.Field(description="Of JPEG and WebP; null is 95.", ge=1, le=100)
    ] = None
    stream: Annotated[
        bool, pydantic.Field(description="Answer with server-sent events, one a step.")
    ] = False
    preview_every: Annotated[
        int,
        pydantic.Field(
            description="In a stream: steps from one preview to the next; 0 is none.", ge=0
        ),
    ] = 1
    deadline: Annotated[
        float | None,
        pydantic.Field(
            description="Seconds that it may take, within what the server allows.", gt=0, le=86_400
        ),
    ] = None


GenerateBody = pydantic.create_model(
    "GenerateBody",
    __base__=(_Options, request_model()),
    __config__=None,
)


def router(intake: Intake, faults: Faults) -> APIRouter:
    """The route of this interface."""
    service = intake.service
    routes = APIRouter(tags=["kdrt"])

    @routes.post(
        PATH,
        summary="Make images",
        responses=ANSWER_DOCS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
            }
        },
    )
    async def generate(request: Request) -> Response:
        """Makes images with any field of a request. The answer holds each image with the text that
        says how it was made. With `stream`, events come as they happen: `accepted`, then `step`
        with a small preview, then `result` with what would have been the answer, or `error`."""
        service.check_open()
        body = cast(_Options, await read_json(request, GenerateBody))
        submission = await submitted_while_connected(
            request,
            intake.submit(
                lambda: _request_of(body, service.settings.limits),
                model=body.model,
                loras=body.lora,
                watch=body.stream,
                deadline=body.deadline,
            ),
        )
        if not body.stream:
            result = await result_while_connected(request, submission)
            return json_response(await asyncio.to_thread(_answer, body, submission, result))
        has_previews = service.model(body.model).has_previews
        return EventStream(
            _events(body, submission, has_previews=has_previews),
            submission,
            faults,
            lambda fault: event(error_body(fault), "error"),
        )

    return routes


def _request_of(body: _Options, limits: RequestLimits) -> kdrt.Request:
    """The fields that were given, with images decoded."""
    given: dict[str, Any] = body.model_dump(exclude_unset=True)
    request = {name: value for name, value in given.items() if name in FIELDS}
    for name in _IMAGES:
        if isinstance(request.get(name), str):
            data = decoded_base64(name, request[name])
            request[name] = read_image(name, data, limits.input_pixels)
    for name in _PROMPT_IMAGES:
        if request.get(name) is not None:
            images = SeveralImages(name, limits.input_pixels)
            request[name] = _pictures(name, request[name], images)
    if request.get("regions") is not None:
        request["regions"] = _regions_of(request["regions"], limits)
    if body.control is not None:
        request[CONTROL] = read_controls(body.control, limits)
    return cast(kdrt.Request, request)


def _pictures(name: str, value: Any, images: SeveralImages) -> Any:
    """Images in the place of their texts."""
    if isinstance(value, list):
        return [_pictures(name, each, images) for each in value]
    if isinstance(value, dict):
        return {adapter: _pictures(name, each, images) for adapter, each in value.items()}
    return images.read(name, value)


def _regions_of(bodies: Sequence[Mapping[str, Any]], limits: RequestLimits) -> list[kdrt.Region]:
    if len(bodies) > MAX_REGIONS:
        raise LimitError(
            f"these are {len(bodies)} regions, and an image has at most {MAX_REGIONS}", "regions"
        )
    masks = SeveralImages("regions", limits.input_pixels)
    return [
        kdrt.Region(
            body["prompt"],
            masks.read(f"the mask of region {number}", body["mask"]),
            body.get("weight", 1.0),
        )
        for number, body in enumerate(bodies, start=1)
    ]


def _answer(body: _Options, submission: Submission, result: Result[Any]) -> dict[str, Any]:
    nsfw = result.nsfw or [False] * len(result.seeds)
    return {
        "model": submission.model,
        "output_format": body.output_format,
        "images": [
            {
                "image": base64_of(image, body.output_format, infotext, quality=body.quality),
                "seed": seed,
                "infotext": str(infotext),
                "nsfw": flagged,
            }
            for image, seed, infotext, flagged in zip(
                result.images, result.seeds, result.infotexts, nsfw, strict=True
            )
        ],
        "in_flight": result.in_flight,
        "unet_rows": result.unet_rows,
        "warnings": [str(each) for each in result.truncations],
    }


async def _events(
    body: _Options, submission: Submission, *, has_previews: bool
) -> AsyncIterator[bytes]:
    yield event({"model": submission.model, "steps": submission.steps}, "accepted")
    async for step in submission:
        every = body.preview_every
        wanted = has_previews and every > 0 and (step.index + 1) % every == 0
        told = _step(step, submission.steps)
        preview = await looked(partial(_preview, step)) if wanted else None
        yield event(told if preview is None else {**told, "preview": preview}, "step")
    result = await submission.result()
    yield event(await asyncio.to_thread(_answer, body, submission, result), "result")


def _step(step: ImageStep, steps: int) -> dict[str, Any]:
    return {"image": step.image, "step": step.index + 1, "steps": steps, "sigma": step.sigma}


def _preview(step: ImageStep) -> str:
    return base64_of(step.preview()[0], "webp")
