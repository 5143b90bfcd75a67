"""The application: a service behind the interfaces that clients have."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kdrt._version import __version__
from kdrt.serve import a1111, api_docs, health, kserve, native, openai, playground
from kdrt.serve.context import RequestContext
from kdrt.serve.errors import Fault
from kdrt.serve.gate import Gate
from kdrt.serve.intake import Intake
from kdrt.serve.responses import Faults, json_response
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings

_DESCRIPTION = """
Images with Stable Diffusion and SDXL. Requests of all clients share every evaluation of the model,
whatever their samplers, steps and prompts are.
"""


def create_app(service: ImageService, settings: ServerSettings | None = None) -> FastAPI:
    """The application of a service. It neither loads nor closes the service: who made it does.

    Args:
        service: makes the images.
        settings: who may come in; None is the machine's own programs.
    """
    settings = settings or ServerSettings()
    intake = Intake(service)
    dialects = {
        "/v2": kserve.error_body,
        openai.PREFIX: openai.error_body,
        a1111.PREFIX: a1111.error_body,
        a1111.controlnet_lists.PREFIX: a1111.error_body,
    }
    faults = Faults(service, dialects)
    app = FastAPI(
        title="kdrt", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None
    )
    app.include_router(native.router(intake, faults))
    app.include_router(openai.router(intake, faults))
    app.include_router(a1111.router(intake, settings))
    app.include_router(a1111.controlnet_lists.router(service))
    app.include_router(kserve.router(service))
    app.include_router(health.router(service))
    app.include_router(playground.router(service))
    app.include_router(api_docs.router())
    # The last that is added is outermost.
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(RequestContext, faults=faults, stall=settings.stall)

    async def http_error(request: Request, error: Exception) -> Response:
        """No such path or method: what the framework refuses by itself."""
        assert isinstance(error, HTTPException)
        kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        fault = Fault(
            error.status_code, kind, f"{error.detail}: {request.method} {request.url.path}"
        )
        body = faults.body(fault, request.url.path)
        return json_response(body, error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        """A parameter of a path that is of a wrong type."""
        fault = Fault(400, "invalid_request", "a parameter of the path is wrong")
        return json_response(faults.body(fault, request.url.path), 400)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    return app
