"""A service in tests: its client, a real server, and a model that waits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from kdrt.serve.server import Server
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings

Made = TypeVar("Made")

HOST = "http://127.0.0.1"


def client_of(app: FastAPI) -> TestClient:
    """A client in this process, which calls the server by a name that it answers to."""
    return TestClient(app, base_url=HOST)


@contextmanager
def running(service: ImageService, settings: ServerSettings | None = None) -> Iterator[str]:
    """A real server of a loaded service on a free port: its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(service, settings or ServerSettings())
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: server.started)
        yield f"{HOST}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def waiting_model(service: ImageService) -> AbstractContextManager[None]:
    """Within the block the first model makes nothing, so that its requests wait."""
    return service.model().pipe.calls.exclusive()


def run(made: Callable[[], Awaitable[Made]]) -> Made:
    """What a coroutine comes to, in an event loop of its own."""

    async def main() -> Made:
        return await made()

    return asyncio.run(main())


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that comes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def value_of(service: ImageService, metric: str, **labels: str) -> float:
    """A metric's value; 0 where nothing was counted."""
    return service.metrics.registry.get_sample_value(metric, labels) or 0.0


def image_of(text: str) -> Image.Image:
    """An image from base64."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events: names and data."""
    events = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        events.append((lines.get("event", "message"), json.loads(lines["data"])))
    return events
