"""``/docs``: the interfaces for people to read and to try, without a request to another host.

The page is Swagger UI's, whose files come with the package fastapi-offline.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

PATH = "/docs"

_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>kdrt: its interfaces</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="playground/icon.svg">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script defer src="docs/swagger-ui-bundle.js"></script>
<script defer src="docs/start.js"></script>
</head>
<body><div id="docs"></div><noscript>This page needs JavaScript; the same for programs is
<a href="openapi.json">openapi.json</a>.</noscript></body>
</html>
"""

_START = b"""// Its public validator would be asked about the schema.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
"""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI writes styles into its elements
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


_JS, _CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
_OWN = {PATH: ("text/html; charset=utf-8", _PAGE), f"{PATH}/start.js": (_JS, _START)}
_SWAGGER = {
    f"{PATH}/swagger-ui-bundle.js": (_JS, "swagger-ui-bundle.js"),
    f"{PATH}/swagger-ui.css": (_CSS, "swagger-ui.css"),
}

PATHS = frozenset((*_OWN, *_SWAGGER))
"""Of the page and its files. They tell nothing of the server, and need no key."""


def router() -> APIRouter:
    """The page and its files."""
    routes = APIRouter(include_in_schema=False)
    for path, (kind, content) in _OWN.items():
        routes.add_api_route(path, _answering(kind, content), methods=["GET"])
    folder = files("fastapi_offline").joinpath("static")
    for path, (kind, name) in _SWAGGER.items():
        content = folder.joinpath(name).read_bytes()
        routes.add_api_route(path, _answering(kind, content), methods=["GET"])
    return routes


def _answering(kind: str, content: bytes) -> Any:
    async def answer() -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return answer
