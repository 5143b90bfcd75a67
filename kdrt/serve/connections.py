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

_LOOKS = 10
"""In the time after which a connection is ended."""

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
        self._state = self._seen()
        self._moved = self.loop.time()
        self._look_later()
        if len(self.connections) > self.most:
            _logger.warning("a connection was refused: %d are open", self.most)
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _seen(self) -> tuple[RequestResponseCycle | None, bool, int]:
        """The last request, whether it is being answered, and what its client has yet to take."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return self.cycle, is_answering, self.transport.get_write_buffer_size()

    def _look_later(self) -> None:
        self._timer = self.loop.call_later(self.stall / _LOOKS, self._look)

    def _look(self) -> None:
        """End it if it has not moved for long. A request that is being answered is left alone: how
        long that may take is not decided here."""
        now, seen = self.loop.time(), self._seen()
        if seen != self._state:
            self._state, self._moved = seen, now
        is_answering = seen[1] and not self.transport.is_closing()
        if now - self._moved >= self.stall and not is_answering:
            self.transport.abort()
        else:
            self._look_later()


def bounded_protocol(stall: float, most: int = MOST) -> type[BoundedProtocol]:
    """A protocol for uvicorn, whose configuration takes a class.

    Args:
        stall: seconds without a request, or in which the client takes nothing of an answer that is
            over, after which a connection is ended.
        most: connections at once. Those beyond are answered with 503.
    """
    return type("BoundedProtocol", (BoundedProtocol,), {"stall": stall, "most": most})
