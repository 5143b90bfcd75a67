"""A worker, as the front sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from prometheus_client.metrics_core import Metric
from torch import Tensor

from kdrt.serve.errors import ReplicaLostError
from kdrt.serve.replica import Ask, Done, Event, Failed
from kdrt.serve.workers.channel import Channel
from kdrt.serve.workers.messages import (
    Cancel,
    Figures,
    Look,
    LookAt,
    Looked,
    Ready,
    Refused,
    Run,
    Told,
)
from kdrt.serve.workers.specs import WorkerSpec, environment_of

# Not with the working directory in its path, where a user's file may have the name of a module.
_COMMAND = (sys.executable, "-P", "-m", "kdrt.serve.workers.process")

_SECONDS_TO_END = 1.0
"""For a process that says nothing any more."""

_LOST = object()
"""Put where the next event is waited for when the worker has ended."""


class Worker:
    """A worker process, from its start to its end. It is a `kdrt.serve.replica.Replica`.

    Attributes:
        name: what it is called.
        outstanding: images that it was asked for and that are not over; for the event loop.
        refused: why it could not be loaded, if it said so.
        figures: its metrics, as it told them last.

    Args:
        spec: how to start it.

    Raises:
        OSError: there can be no further process.
        RuntimeError: there can be no further thread.
        Exception: what it is told first cannot be pickled.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.name = spec.name
        self.outstanding = 0
        self.refused: Exception | None = None
        self.figures: tuple[Metric, ...] = ()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._listeners: dict[int, Callable[[Any], object]] = {}
        self._is_ready = self._has_ended = False
        self._has_come_up = threading.Event()
        """It is ready, or has ended."""
        # In a session of its own it is not hit by the Ctrl-C that tells the front to end, and can
        # finish what runs.
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_of(spec),
            start_new_session=True,
        )
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._channel = Channel(self._process.stdout, self._process.stdin)
            self._listening = self._channel.listen(self._received, self._ended)
            self._channel.send(spec.start)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __repr__(self) -> str:
        return f"worker {self.name} (process {self.pid})"

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it is loaded and warm, and has not ended."""
        return self._is_ready and not self._has_ended

    def wait_ready(self) -> bool:
        """Wait until it is loaded and warm, or has ended; whether it is."""
        self._has_come_up.wait()
        return self.is_ready

    def wait_ended(self) -> None:
        """Wait until its process has ended."""
        self._listening.join()
        self._process.wait()

    def how_it_ended(self) -> str:
        """What became of its process, for a sentence about it."""
        code = self._process.returncode
        if code is None:
            return "is lost"
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            by = f"was ended by {signal.Signals(-code).name}"
            return by + (", as when memory runs out" if -code == signal.SIGKILL else "")
        return f"was ended by signal {-code}"

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `kdrt.serve.replica.Replica`."""
        number, coming = self._listen()
        self.outstanding += ask.images
        is_over = False
        try:
            self._channel.send(Run(number, ask))
            while not is_over:
                event = self._told(await coming.get())
                is_over = isinstance(event, Done | Failed)
                yield event
        finally:
            self.outstanding -= ask.images
            self._forget(number)
            if not is_over:
                self._channel.send(Cancel(number))

    async def look(self, look: Look, model: str, denoised: Tensor) -> Any:
        """An image of an unfinished one.

        Raises:
            ReplicaLostError: the worker has ended.
            KdrtError: it failed.
        """
        number, coming = self._listen()
        is_over = False
        try:
            self._channel.send(LookAt(number, look, model, denoised))
            seen = await coming.get()
            is_over = True
        finally:
            self._forget(number)
            if not is_over:
                self._channel.send(Cancel(number))
        self._told(seen)
        if isinstance(seen, Exception):
            raise seen
        return seen

    def end(self, patience: float) -> None:
        """Have it end, and wait until it has; after so many seconds it is killed."""
        self._channel.close(patience)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.wait_ended()

    def _listen(self) -> tuple[int, asyncio.Queue[Any]]:
        """A number, and what is told under it."""
        loop, coming = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def tell(event: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(coming.put_nowait, event)

        number = next(self._numbers)
        with self._lock:
            if self._has_ended:
                raise self._loss()
            self._listeners[number] = tell
        return number, coming

    def _forget(self, number: int) -> None:
        with self._lock:
            self._listeners.pop(number, None)

    def _told(self, event: Any) -> Any:
        if event is _LOST:
            raise self._loss()
        return event

    def _loss(self) -> ReplicaLostError:
        return ReplicaLostError(f"{self!r} {self.how_it_ended()}")

    def _received(self, message: object) -> None:
        if isinstance(message, Told | Looked):
            with self._lock:
                tell = self._listeners.get(message.number)
            if tell is not None:  # otherwise it was cancelled
                tell(message.event if isinstance(message, Told) else message.seen)
        elif isinstance(message, Figures):
            self.figures = message.families
        elif isinstance(message, Ready):
            self._is_ready = True
            self._has_come_up.set()
        elif isinstance(message, Refused):
            self.refused = message.error

    def _ended(self) -> None:
        """There is nothing more to be read: the process has ended, or does so now."""
        self._channel.close(0)
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        with self._lock:
            self._has_ended = True
            listeners, self._listeners = self._listeners, {}
        self._has_come_up.set()
        for tell in listeners.values():
            tell(_LOST)
