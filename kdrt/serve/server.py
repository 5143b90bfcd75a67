"""The process: one socket, one event loop, and an end that loses nothing silently.

At the first SIGTERM or Ctrl-C new requests are answered with 503, what runs is finished within the
grace time, and what is left is cancelled, each with an answer. At the second the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from kdrt.errors import KdrtError
from kdrt.serve.app import create_app
from kdrt.serve.connections import bounded_protocol
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings

_logger = logging.getLogger(__name__)

_SECONDS_TO_SEND = 10
"""What clients get to take the last answers, once everything is made."""


def serve(
    service: ImageService, settings: ServerSettings, announce: Callable[[str], object]
) -> None:
    """Serve until a signal ends it. It listens at once, and is ready when all models are loaded.

    Args:
        service: not loaded yet; it is closed in the end.
        settings: where, and for whom.
        announce: called with the URL once it listens.

    Raises:
        KdrtError: the address cannot be listened on, a model cannot be loaded, or nothing that
            makes images can be had any more.
    """
    listening = _listen(settings.host, settings.port)
    server = Server(service, settings)
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        if not server.should_exit:
            failures.append(error)
        server.should_exit = True

    def load() -> None:
        try:
            service.load()
        except BaseException as error:
            fail(error)

    service.on_failure = fail
    loading = threading.Thread(target=load, name="kdrt-load")
    try:
        announce(_url(listening))
        loading.start()
        server.run([listening])
    finally:
        listening.close()
        service.close()
        if loading.ident is not None:
            loading.join()  # it ends after what it is about to load
            service.close()
    if failures:
        raise failures[0]


class Server(uvicorn.Server):
    """A server that drains its service before it closes connections.

    Args:
        service: makes the images.
        settings: for whom, and how long it may take to end.
    """

    def __init__(self, service: ImageService, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service, settings),
                http=bounded_protocol(settings.stall),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_graceful_shutdown=_SECONDS_TO_SEND,
            )
        )
        self._service = service
        self._grace = settings.grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._is_ending = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does."""
        if self._is_ending or self._loop is None or not self._service.is_loaded:
            self.should_exit = self.force_exit = True
            return
        self._is_ending = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            _logger.info("ending: what runs has %g s to be finished", self._grace)
            await self._service.drain(self._grace)
            self.should_exit = True

        self._draining = asyncio.ensure_future(drain())


def _listen(host: str, port: int) -> socket.socket:
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = _reason(error)
        raise KdrtError(
            f"cannot listen on {host!r}, port {port}: {reason}; choose others with --host and "
            "--port"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return error.strerror or "it is no address"
    # Python adds the address to the system's own words.
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "it is no address"


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
