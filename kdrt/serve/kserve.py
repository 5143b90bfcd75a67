"""Health and metadata of KServe's v2 inference protocol, for what routes requests by it.

Images are asked for by the other interfaces: the protocol's tensors have no place for a prompt
with twenty settings.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from kdrt._version import __version__
from kdrt.request.fields import FIELDS
from kdrt.serve.errors import Fault
from kdrt.serve.model import ServedModel
from kdrt.serve.responses import json_response
from kdrt.serve.service import ImageService

_TYPES = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}

_ERROR_DOCS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What is wrong, in a sentence.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"error": {"type": "string"}}}
            }
        },
    }
}


def error_body(fault: Fault) -> dict[str, Any]:
    """The protocol's dialect."""
    return {"error": fault.message}


def router(service: ImageService) -> APIRouter:
    """The routes of the protocol."""
    routes = APIRouter(prefix="/v2", tags=["KServe v2"], responses=_ERROR_DOCS)

    @routes.get("", summary="The server")
    async def server() -> Response:
        return json_response({"name": "kdrt", "version": __version__, "extensions": []})

    @routes.get("/health/live", summary="Whether the process answers")
    async def live() -> Response:
        return json_response({"live": True})

    @routes.get("/health/ready", summary="Whether requests are taken")
    async def ready() -> Response:
        service.check_open()
        return json_response({"ready": True})

    @routes.get("/models/{model}", summary="A model")
    async def model(model: str) -> Response:
        return json_response(_metadata(service.model(model)))

    @routes.get("/models/{model}/ready", summary="Whether a model is loaded")
    async def model_ready(model: str) -> Response:
        """503 where it is not: a request to it is taken, and waits until it is loaded."""
        served = service.model(model)
        service.check_open()
        is_loaded = service.has_loaded(served)
        return json_response(
            {"name": served.name, "ready": is_loaded}, status=200 if is_loaded else 503
        )

    return routes


def _metadata(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "platform": "kdrt",
        "inputs": [
            {"name": name, "datatype": _TYPES[field.scalar], "shape": [1]}
            for name, field in FIELDS.items()
            if field.json_type is not None and field.scalar in _TYPES
        ],
        "outputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    }
