"""``/``: a page for people, to try what is served.

It is plain files without a build step, which ask this server and no other: a policy that comes
with them has the browser refuse anything else.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydantic
from fastapi import APIRouter, Request
from starlette.responses import Response

from kdrt.errors import InvalidRequestError
from kdrt.images.metadata import read_metadata
from kdrt.request.fields import FIELDS
from kdrt.request.recorded import RecordedRequest, request_of_settings
from kdrt.request.schema import request_model
from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt.serve.errors import MediaTypeError, RequestError
from kdrt.serve.images import read_image
from kdrt.serve.model import ServedModel
from kdrt.serve.responses import json_response
from kdrt.serve.service import ImageService

PREFIX = "/playground"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

FILES: Mapping[str, str] = {
    "/": "index.html",
    **{
        f"{PREFIX}/{name}": name
        for name in (
            *("api.js", "app.js", "form.js", "gallery.js", "icon.svg", "mask.js", "start.js"),
            "style.css",
        )
    },
}
"""The files of the page by path. They tell nothing of the server, and need no key."""

_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' blob: data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_EXACT = 2**53
"""JavaScript's numbers are exact up to here."""


def router(service: ImageService) -> APIRouter:
    """The page, and what it asks for besides ``/v1/generate``."""
    routes = APIRouter(include_in_schema=False)
    one_at_a_time = asyncio.Lock()  # a decoded image takes many times the bytes of its file
    for path, name in FILES.items():
        routes.add_api_route(path, _file(name), methods=["GET"])

    @routes.get(f"{PREFIX}/facts.json")
    async def facts() -> Response:
        """What a form for this server needs to know."""
        return json_response(_facts(service), headers={"cache-control": "no-cache"})

    @routes.post(f"{PREFIX}/read")
    async def read(request: Request) -> Response:
        """How an image was made, as fields of a request. The body is the image's file."""
        if not request.headers.get("content-type", "").startswith("image/"):
            raise MediaTypeError("the body must be an image, with a content-type of image/*")
        data = await request.body()
        most = service.settings.limits.input_pixels
        async with one_at_a_time:
            recorded = await asyncio.to_thread(_read, data, most)
        fields, left_out = _for_json(recorded)
        return json_response({"fields": fields, "left_out": left_out, "model": recorded.model})

    return routes


def _file(name: str) -> Any:
    """Answers with a file of the page."""
    content = files("kdrt.serve").joinpath("page", name).read_bytes()
    kind = _TYPES[Path(name).suffix]

    async def answer() -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return answer


def _facts(service: ImageService) -> dict[str, Any]:
    limits = service.settings.limits
    return {
        "models": [_model(model) for model in service.models.values()],
        "samplers": [{"name": each.name, "label": each.label} for each in SAMPLERS.values()],
        "schedules": [
            {"name": each.name, "label": each.label, "meaning": each.meaning}
            for each in SCHEDULES.values()
        ],
        "defaults": {name: FIELDS[name].default for name in ("steps", "sampler", "schedule")},
        "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__},
    }


def _model(model: ServedModel) -> dict[str, Any]:
    manifest = model.bundle.manifest
    return {
        "name": model.name,
        "width": manifest.latents.default_width,
        "height": manifest.latents.default_height,
        "multiple": manifest.latents.scale,
        "guidance": manifest.default_guidance_scale,
        "takes_image": "vae_encoder" in manifest.components,
        "loras": list(model.loras),
    }


def _read(data: bytes, most_pixels: int) -> RecordedRequest:
    """What the text in an image's file tells.

    Raises:
        LimitError: it has more pixels than are read here.
        RequestError: it is no image, or does not say how it was made.
    """
    read_image("image", data, most_pixels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        try:
            found = read_metadata(path)
        except InvalidRequestError:  # whose sentence names the path
            raise RequestError("what this image says of itself is damaged", "image") from None
    if found is None:
        raise RequestError("this image does not say how it was made", "image")
    return request_of_settings(found.settings, found.program).usable()


def _for_json(recorded: RecordedRequest) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields that a request in JSON can hold, and all that is left out."""
    model = request_model()
    fields: dict[str, Any] = {}
    left_out = dict(recorded.left_out)
    for name, value in recorded.fields.items():
        try:
            if isinstance(value, int) and abs(value) >= _EXACT:
                raise ValueError("a browser would round it")
            model.model_validate_json(json.dumps({name: value}), strict=True)
            fields[name] = value
        except (TypeError, ValueError, pydantic.ValidationError):
            left_out[FIELDS[name].record or name] = str(value)
    return fields, left_out
