"""Answers: JSON, errors in the dialect of an interface, events, and results for as long as the
client is there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kdrt.errors import KdrtError
from kdrt.pipeline.result import Result
from kdrt.serve.errors import ClientGoneError, Fault, fault_of
from kdrt.serve.service import ImageService
from kdrt.serve.submission import Submission

_logger = logging.getLogger(__name__)

Dialect = Callable[[Fault], Mapping[str, Any]]
"""How an interface writes an error."""

_HEARTBEAT_SECONDS = 15.0
"""What proxies wait at least before they close a connection on which nothing is sent."""

_LONGEST_MESSAGE = 4_000
"""Characters of an error: it may quote what a client sent."""

_EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""So that no proxy keeps events until there are more of them."""


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON in ASCII: an error may quote half a character, which UTF-8 has no bytes for."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def error_body(fault: Fault) -> dict[str, Any]:
    """The dialect of OpenAI, which is kdrt's own too."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(fault.status) or (
        "invalid_request_error" if fault.status < 500 else "server_error"
    )
    return {
        "error": {
            "message": fault.message,
            "type": kind,
            "param": fault.field,
            "code": fault.kind,
        }
    }


ERROR_DOCS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What is wrong, in a sentence, with a word for programs in `code`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                            "properties": {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": "string"},
                            },
                        }
                    },
                }
            }
        },
    }
}
"""What the schema of an interface says of `error_body`."""

ANSWER_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The images; with `stream` true, events.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **ERROR_DOCS,
}
"""The same of an answer that may be streamed."""


class Faults:
    """Turns errors into answers, counts them, and logs those that are the server's.

    Args:
        service: counts them, and knows what not to tell.
        dialects: by the beginning of a path; all others get `error_body`.
    """

    def __init__(self, service: ImageService, dialects: Mapping[str, Dialect]) -> None:
        self._service = service
        self._dialects = dict(dialects)

    def response(self, error: BaseException, path: str) -> Response:
        """The answer to a request for ``path`` that failed."""
        fault = self.of(error)
        return json_response(self.body(fault, path), fault.status, fault.headers)

    def of(self, error: BaseException) -> Fault:
        """What a client is told of an error, which is counted and logged."""
        if isinstance(error, ClientDisconnect):
            error = ClientGoneError("the client closed the connection")
        fault = fault_of(error)
        # Cut after that: half of a place would not be found.
        message = self._service.without_private(fault.message)
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
        fault = replace(fault, message=message)
        self._service.metrics.failed(fault.kind)
        facts = {"kind": fault.kind, "status": fault.status}
        if fault.status == 500 and not isinstance(error, KdrtError):
            _logger.error("a request failed", exc_info=error, extra={"facts": facts})
        elif fault.status >= 500 and not fault.is_retryable:
            _logger.warning("a request failed: %s", error, extra={"facts": facts})
        else:
            _logger.info("refused: %s", fault.message, extra={"facts": facts})
        return fault

    def body(self, fault: Fault, path: str) -> Mapping[str, Any]:
        """The fault in the dialect of the interface that ``path`` belongs to."""
        for beginning, dialect in self._dialects.items():
            if path.startswith(beginning):
                return dialect(fault)
        return error_body(fault)


async def submitted_while_connected(
    request: Request, submitting: Coroutine[Any, Any, Submission]
) -> Submission:
    """A submission, unless the client closes the connection before its model is loaded: then
    nothing is left of it.

    Raises:
        ClientGoneError: it has.
        KdrtError: see `ImageService.submit`.
    """
    accepting = asyncio.ensure_future(submitting)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((accepting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if accepting.cancel():
            await asyncio.wait((accepting,))
            raise ClientGoneError("the client closed the connection")
        return await accepting
    finally:
        accepting.cancel()
        leaving.cancel()


async def result_while_connected(request: Request, submission: Submission) -> Result[Any]:
    """The result of a submission, which is cancelled when the client closes the connection.

    Raises:
        ClientGoneError: it has.
        KdrtError: see `Submission.result`.
    """
    making = asyncio.ensure_future(submission.result())
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((making, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            submission.cancel(ClientGoneError("the client closed the connection"))
        return await making
    finally:
        making.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(StreamingResponse):
    """Server-sent events of a submission, which is cancelled when the client closes the connection.

    Args:
        events: go over the submission.
        submission: what they are about.
        faults: is told what goes wrong.
        error_event: the last event of a submission that failed.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        submission: Submission,
        faults: Faults,
        error_event: Callable[[Fault], bytes],
    ) -> None:
        async def told() -> AsyncIterator[bytes]:
            try:
                async for each in with_heartbeats(events):
                    yield each
            except Exception as error:
                yield error_event(faults.of(error))

        super().__init__(told(), 200, _EVENT_HEADERS, "text/event-stream")
        self._submission = submission
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            gone = ClientGoneError("the client closed the connection")
            if self._submission.cancel(gone):
                self._faults.of(gone)
            self._submission.was_read()


async def with_heartbeats(
    events: AsyncIterator[bytes], seconds: float = _HEARTBEAT_SECONDS
) -> AsyncIterator[bytes]:
    """The same events, and comments where none comes for so long: proxies close connections on
    which nothing is sent, and a request may wait in the queue."""
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait((coming,), timeout=seconds))[0]:
                yield b": waiting\n\n"
            event = await coming
        finally:
            coming.cancel()
        if event is None:
            return
        yield event
