"""The routes of the web UI's API."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import pydantic
from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response

from kdrt.images.metadata import texts_of
from kdrt.serve.a1111 import lists
from kdrt.serve.a1111.answers import ERROR_DOCS, answer, png_info
from kdrt.serve.a1111.bodies import ImageBody, ImagesBody, PngInfoBody, TextBody
from kdrt.serve.a1111.jobs import Job, Jobs, nothing_runs
from kdrt.serve.a1111.options import Overrides, all_options, check_unchanged
from kdrt.serve.a1111.requests import loras_of, request_of
from kdrt.serve.auth import given_key
from kdrt.serve.bodies import read_json
from kdrt.serve.images import decoded_base64, read_image
from kdrt.serve.intake import Intake
from kdrt.serve.model import ServedModel
from kdrt.serve.responses import (
    json_response,
    result_while_connected,
    submitted_while_connected,
)
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings

PREFIX = "/sdapi/v1"


class _Clients:
    """Who asks. With keys, those with one key are one client; without, all are."""

    def __init__(self, settings: ServerSettings) -> None:
        self._has_keys = settings.keys is not None
        self._chosen: dict[str, str] = {}

    def name(self, request: Request) -> str:
        if not self._has_keys:
            return ""
        given = given_key(request.headers.get("authorization", "")) or ""
        return hashlib.sha256(given.encode("utf-8", errors="surrogateescape")).hexdigest()

    def choose(self, request: Request, model: str) -> None:
        """From now on this model makes what the client does not ask of another."""
        self._chosen[self.name(request)] = model

    def chosen(self, request: Request) -> str | None:
        return self._chosen.get(self.name(request))


def router(intake: Intake, settings: ServerSettings) -> APIRouter:
    """The routes of the API.

    Args:
        intake: takes what is asked for.
        settings: whether clients have keys.
    """
    service = intake.service
    routes = APIRouter(prefix=PREFIX, tags=["AUTOMATIC1111"], responses=ERROR_DOCS)
    clients, jobs = _Clients(settings), Jobs()

    def model_of(request: Request, overrides: Overrides | None = None) -> ServedModel:
        title = overrides and overrides.sd_model_checkpoint
        if title:
            return service.model(lists.model_called(title, service.models))
        return service.model(clients.chosen(request))

    async def make(request: Request, body: ImagesBody) -> Response:
        model = model_of(request, body.overrides)
        manifest, limits = model.bundle.manifest, service.settings.limits
        submission = await submitted_while_connected(
            request,
            intake.submit(
                lambda: request_of(body, manifest, limits),
                model=model.name,
                loras=loras_of(body, manifest, limits),
                watch=True,
            ),
        )
        if body.override_settings_restore_afterwards is False:
            clients.choose(request, model.name)
        job = Job(submission, body, has_previews=model.has_previews)
        with jobs.running(clients.name(request), job):
            result = await result_while_connected(request, submission)
        told = await asyncio.to_thread(answer, body, model.name, job.timestamp, result)
        return json_response(told)

    @routes.post("/txt2img", summary="Make images of a prompt", openapi_extra=_docs(TextBody))
    async def txt2img(request: Request) -> Response:
        service.check_open()
        return await make(request, await read_json(request, TextBody))

    @routes.post("/img2img", summary="Make images of another", openapi_extra=_docs(ImageBody))
    async def img2img(request: Request) -> Response:
        service.check_open()
        return await make(request, await read_json(request, ImageBody))

    @routes.get("/progress", summary="How far the client's oldest request is")
    async def progress(request: Request) -> Response:
        running = jobs.of(clients.name(request))
        if not running:
            return json_response(nothing_runs())
        told = running[0].told(len(running))
        skips_image = request.query_params.get("skip_current_image", "").lower()
        if skips_image not in ("true", "1"):
            told["current_image"] = await asyncio.to_thread(running[0].picture)
        return json_response(told)

    async def interrupt(request: Request) -> Response:
        for job in jobs.of(clients.name(request)):
            job.interrupt()
        return json_response({})

    # Batches of a request are made together, so that skipping one is skipping all.
    for path in ("/interrupt", "/skip"):
        routes.post(path, summary="End all requests of the client")(interrupt)

    @routes.get("/options", summary="Settings")
    async def options(request: Request) -> Response:
        return json_response(all_options(model_of(request).name))

    @routes.post(
        "/options", summary="Choose a model for requests to come", openapi_extra=_docs(Overrides)
    )
    async def choose(request: Request) -> Response:
        given = await read_json(request, Overrides)
        check_unchanged(given)
        if given.sd_model_checkpoint:
            clients.choose(request, lists.model_called(given.sd_model_checkpoint, service.models))
        return json_response(None)

    @routes.post("/png-info", summary="How an image was made", openapi_extra=_docs(PngInfoBody))
    async def read(request: Request) -> Response:
        body = await read_json(request, PngInfoBody)
        return json_response(await asyncio.to_thread(_png_info, body, service))

    @routes.get("/samplers", summary="Samplers")
    async def samplers() -> Response:
        return json_response(lists.samplers())

    @routes.get("/schedulers", summary="Schedules")
    async def schedulers() -> Response:
        return json_response(lists.schedulers())

    @routes.get("/upscalers", summary="Ways to enlarge pixels between two passes")
    async def upscalers() -> Response:
        return json_response(lists.upscalers(service.models))

    @routes.get("/latent-upscale-modes", summary="Ways to enlarge latents between two passes")
    async def latent_upscale_modes() -> Response:
        return json_response(lists.latent_upscale_modes())

    @routes.get("/sd-models", summary="The models that are served")
    async def models() -> Response:
        return json_response(lists.models(service.models))

    @routes.get("/loras", summary="The LoRAs of the model")
    async def loras(request: Request) -> Response:
        return json_response(lists.loras(model_of(request)))

    _add_constants(routes)
    return routes


def _add_constants(routes: APIRouter) -> None:
    """What is the same for every server, so that clients that ask at their start get an answer."""
    answers: dict[str, Any] = {
        "/embeddings": {"loaded": {}, "skipped": {}},
        "/cmd-flags": {},
        "/scripts": {"txt2img": [], "img2img": []},
        **{f"/{name}": [] for name in lists.EMPTY},
    }
    for path, content in answers.items():
        routes.get(path, summary=lists.EMPTY.get(path[1:], "Nothing"))(_constant(content))
    for path in ("/refresh-checkpoints", "/refresh-vae", "/refresh-loras"):
        routes.post(path, summary="Nothing: what is served is known")(_constant(None))


def _constant(content: Any) -> Any:
    async def constant() -> Response:
        return json_response(content)

    return constant


def _png_info(body: PngInfoBody, service: ImageService) -> Mapping[str, Any]:
    data = decoded_base64("image", body.image)
    read_image("image", data, service.settings.limits.input_pixels)
    with Image.open(io.BytesIO(data)) as image:
        return png_info(texts_of(image, "image"))


def _docs(body: type[pydantic.BaseModel]) -> dict[str, Any]:
    schema = body.model_json_schema()
    settings = schema.pop("$defs", {}).get(Overrides.__name__)
    if settings is not None:  # where it is used: a reference would be to the whole document
        place = schema["properties"]["override_settings"]
        place["anyOf"] = [settings, {"type": "null"}]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
