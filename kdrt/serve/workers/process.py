"""A worker, as it is in its own process: ``python -m kdrt.serve.workers.process``.

It reads messages on standard input and answers on standard output. At the end of its input, which
comes when the front closes the pipe or has ended in whatever way, it ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any

import torch

from kdrt.errors import EngineUnavailableError, KdrtError
from kdrt.serve.log import request_id, start_logging
from kdrt.serve.replica import Failed, ServiceReplica, portable_error
from kdrt.serve.service import ImageService
from kdrt.serve.workers.channel import Channel
from kdrt.serve.workers.messages import (
    Cancel,
    Figures,
    LookAt,
    Looked,
    Ready,
    Refused,
    Run,
    Start,
    Told,
)

_FIGURES_EVERY = 1.0
"""Seconds from one report of the metrics to the next."""


def main() -> int:
    """Serve one front; the exit status where there is nothing to serve."""
    channel = Channel(*_take_standard_streams())
    try:
        start: Start = channel.receive()
    except EOFError:
        return 0
    loop = asyncio.new_event_loop()
    inbox: asyncio.Queue[Any] = asyncio.Queue()

    def received(message: object) -> None:
        loop.call_soon_threadsafe(inbox.put_nowait, message)

    # Nobody waits for anything any more, and a clean end would wait for the step under way.
    channel.listen(received, lambda: os._exit(0))
    try:
        service = _loaded(start)
    except KdrtError as error:
        channel.send(Refused(portable_error(error)))
        channel.close()
        return 1
    channel.send(Ready())
    loop.run_until_complete(_Worker(service, channel).serve(inbox))
    return 0


def _take_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Messages go where standard output went; what libraries print there goes to standard error."""
    reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return reading, writing


def _loaded(start: Start) -> ImageService:
    """The service of a worker.

    Raises:
        EngineUnavailableError: it is to run on a GPU, and has none.
        KdrtError: a model cannot be loaded.
    """
    start_logging(start.log)
    # That models are warm, the front says.
    logging.getLogger("kdrt.serve").setLevel(logging.WARNING)
    for handler in logging.getLogger("kdrt").handlers:
        handler.addFilter(_Named(start.name))
    if start.needs_gpu and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"there is no GPU {os.environ.get('CUDA_VISIBLE_DEVICES')} that PyTorch can use; see "
            "`kdrt doctor`, or serve on the CPU with --workers"
        )
    service = ImageService(start.models, start.settings)
    service.load()
    return service


class _Named(logging.Filter):
    """Adds the name of the worker to what it says."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._worker = name

    def filter(self, record: logging.LogRecord) -> bool:
        record.facts = {**getattr(record, "facts", {}), "worker": self._worker}
        return True


class _Worker:
    """Does what the front asks for.

    Args:
        service: loaded.
        channel: to the front.
    """

    def __init__(self, service: ImageService, channel: Channel) -> None:
        self._service = service
        self._replica = ServiceReplica(service)
        self._channel = channel
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self, inbox: asyncio.Queue[Any]) -> None:
        """Work until the process ends."""
        reporting = asyncio.ensure_future(self._report())
        try:
            while True:
                message = await inbox.get()
                if isinstance(message, Run):
                    self._begin(message.number, self._run(message))
                elif isinstance(message, LookAt):
                    self._begin(message.number, self._look(message))
                elif isinstance(message, Cancel) and message.number in self._tasks:
                    self._tasks[message.number].cancel()
        finally:
            reporting.cancel()

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[number] = task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._tasks.pop(number))

    async def _run(self, run: Run) -> None:
        request_id.set(run.ask.request_id)
        try:
            async with aclosing(self._replica.run(run.ask)) as events:
                async for event in events:
                    self._channel.send(Told(run.number, event))
        except Exception as error:  # an event that cannot be pickled
            self._channel.send(Told(run.number, Failed(portable_error(error))))

    async def _look(self, look: LookAt) -> None:
        looks = {"preview": self._replica.preview, "decode": self._replica.decode}
        seen: object
        try:
            seen = await looks[look.look](look.model, look.denoised)
        except Exception as error:
            seen = portable_error(error)
        try:
            self._channel.send(Looked(look.number, seen))
        except Exception as error:  # what was seen cannot be pickled
            self._channel.send(Looked(look.number, portable_error(error)))

    async def _report(self) -> None:
        while True:
            families = tuple(self._service.metrics.registry.collect())
            self._channel.send(Figures(families))
            await asyncio.sleep(_FIGURES_EVERY)


if __name__ == "__main__":
    sys.exit(main())
