"""Connections that do nothing, and how many there may be.

`kdrt.serve.context` bounds how long a request may stand still. What it cannot see are connections
without one: on which nothing is sent, or the head of a request never ends, or the rest of a body
that was refused never comes. Nor those that are closed and stay open because their client does not
take the last of its answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_logger = logging.getLogger(__name__)

MOST = 512
"""Connections at once: half of the files that a process may usually open."""

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


class BoundedProtocol(H11Protocol):
    """uvicorn's connection, ended where it stands still; see `bounded_protocol`."""

    stall: ClassVar[float]
    most: ClassVar[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._at_last_look: tuple[RequestResponseCycle | None, bool] = (None, False)
        self._timer = self.loop.call_later(self.stall, self._look)
        if len(self.connections) > self.most:
            _logger.warning("a connection was refused: %d are open", self.most)
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """End it if nothing is asked for, or it is closing, as was so at the last look. While a
        request is answered it is left alone."""
        is_closing = self.transport.is_closing()
        is_answering = self.cycle is not None and not self.cycle.response_complete
        seen = (self.cycle, is_closing)
        if seen == self._at_last_look and (is_closing or not is_answering):
            self.transport.abort()
            return
        self._at_last_look = seen
        self._timer = self.loop.call_later(self.stall, self._look)


def bounded_protocol(stall: float, most: int = MOST) -> type[BoundedProtocol]:
    """A protocol for uvicorn, whose configuration takes a class.

    Args:
        stall: seconds after which a connection is ended on which no request has come; after up to
            twice as long also one on which no further one comes, or whose client does not take the
            last of an answer.
        most: connections at once. Those beyond are answered with 503.
    """
    return type("BoundedProtocol", (BoundedProtocol,), {"stall": stall, "most": most})
