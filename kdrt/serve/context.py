"""What every request has, whatever it asks for: an id, a line in the log, a bound on how long its
client may do nothing, and an answer to errors that nobody else answered."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdrt.serve.errors import ShuttingDownError, StalledError
from kdrt.serve.log import request_id
from kdrt.serve.responses import Faults

_logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADER = "x-request-id"

_SLOWEST = 1_000
"""Bytes of a body that a client must send in a second, in the mean: one that sends now and then a
little is not waited for."""


class RequestContext:
    """Middleware around everything else.

    Args:
        app: what is inside.
        faults: turns errors into answers.
        stall: seconds that a client may neither send nor take anything.
    """

    def __init__(self, app: ASGIApp, faults: Faults, stall: float) -> None:
        self._app = app
        self._faults = faults
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        token = request_id.set(given if _ID.fullmatch(given) else uuid.uuid4().hex)
        try:
            await self._answer(scope, receive, send)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0
        is_read = False
        received = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id.get()
            try:
                await asyncio.wait_for(send(message), self._stall)
            except TimeoutError:
                raise StalledError(f"the client took nothing for {self._stall:g} s") from None

        async def bounded() -> Message:
            nonlocal is_read, received
            if is_read:  # what comes now is that the client has gone, and may come late
                return await receive()
            late = self._stall + received / _SLOWEST - (time.perf_counter() - started)
            try:
                message = await asyncio.wait_for(receive(), min(self._stall, max(0.0, late)))
            except TimeoutError:
                raise StalledError(
                    f"the client sent nothing for {self._stall:g} s, or less than {_SLOWEST} bytes "
                    "a second"
                ) from None
            received += len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, bounded, tagged)
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
            if isinstance(caught, asyncio.CancelledError):  # at a second signal, by the server
                error = ShuttingDownError("the server has ended, and cancelled this request")
            response = self._faults.response(error, scope["path"])
            if not status:  # otherwise it has begun, and can only be broken off
                await response(scope, receive, tagged)
        finally:
            facts = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.perf_counter() - started, 3),
            }
            _logger.info("answered", extra={"facts": facts})
