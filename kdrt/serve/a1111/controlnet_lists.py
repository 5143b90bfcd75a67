"""What clients of the ControlNet extension ask for before they send units: ``/controlnet``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from kdrt.serve.a1111.answers import ERROR_DOCS
from kdrt.serve.a1111.controlnet import MODULES
from kdrt.serve.responses import json_response
from kdrt.serve.service import ImageService

PREFIX = "/controlnet"

_VERSION = 3
"""Of the extension's API."""


def router(service: ImageService) -> APIRouter:
    """The routes: the names of controls of all models, and the modules."""
    routes = APIRouter(prefix=PREFIX, tags=["AUTOMATIC1111"], responses=ERROR_DOCS)

    @routes.get("/version", summary="The version of the extension's API")
    async def version() -> Response:
        return json_response({"version": _VERSION})

    @routes.get("/model_list", summary="ControlNets and T2I-Adapters of the models")
    async def model_list() -> Response:
        models = service.models.values()
        names = {name for model in models for name in model.bundle.manifest.controls}
        return json_response({"model_list": sorted(names)})

    @routes.get("/module_list", summary="What makes control images of others")
    async def module_list() -> Response:
        return json_response({"module_list": list(MODULES)})

    return routes
