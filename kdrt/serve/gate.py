"""Who may come in, and with how much: before anything of a body is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdrt.serve import api_docs, playground
from kdrt.serve.auth import given_key, is_loopback
from kdrt.serve.errors import BodyTooLargeError, ForbiddenError, UnauthorizedError
from kdrt.serve.settings import ServerSettings

OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"}
).union(playground.FILES, api_docs.PATHS)
"""What is answered without a key: that there is a kdrt server, whether it is ready, and what its
interfaces are. ``/readyz`` tells the names of the models too."""


class Gate:
    """Middleware that lets a request in or raises.

    With keys, one of them must come as ``Authorization: Bearer``, or as the password of Basic.
    Without, only programs of this machine can connect, of which a browser is one that acts for
    strangers: pages of other sites, and names that a stranger has pointed at this machine, are
    refused.

    Args:
        app: what is inside.
        settings: the keys, and how large a body may be.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._settings.keys is None:
            _check_local(headers)
        elif scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""))
        await self._app(scope, self._bounded(headers, receive), send)

    def _check_key(self, given: str) -> None:
        key, keys = given_key(given), self._settings.keys
        if key is None or keys is None:
            raise UnauthorizedError(
                "a key is needed, as `Authorization: Bearer KEY`, or as the password of Basic"
            )
        if not keys.open(key):
            raise UnauthorizedError("this key does not open this server")

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        most = self._settings.max_body
        too_large = BodyTooLargeError(
            f"the body is larger than the {most} bytes that this server reads"
        )
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise too_large
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise too_large
            return message

        return bounded


def _check_local(headers: Headers) -> None:
    host = headers.get("host", "")
    if not is_loopback(_without_port(host)):
        raise ForbiddenError(
            "this server answers by the names of its own machine only, such as 127.0.0.1; with "
            "--api-key-file it answers by any"
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise ForbiddenError("pages of other sites may not use this server")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
