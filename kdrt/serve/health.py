"""Whether it lives, whether it takes requests, and what happened so far."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from kdrt.serve.responses import ERROR_DOCS, json_response
from kdrt.serve.service import ImageService


def router(service: ImageService) -> APIRouter:
    """The routes for whoever watches the server."""
    routes = APIRouter(tags=["health"], responses=ERROR_DOCS)

    @routes.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Response:
        """Always 200: a process that does not answer should be started anew."""
        return json_response({"status": "ok"})

    @routes.get("/readyz", summary="Whether requests are taken")
    async def readyz() -> Response:
        """200 once the models of the start are loaded and warm, until the server is told to end;
        else 503."""
        service.check_open()
        return json_response({"status": "ready", "models": list(service.models)})

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        """Images waiting and running, rows of every evaluation, latencies, errors by kind."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return routes
