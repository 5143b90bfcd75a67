"""Sees to it that a worker runs: starts it, and again when it has ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric
from torch import Tensor

from kdrt.errors import KdrtError
from kdrt.serve.replica import Ask, Event
from kdrt.serve.workers.messages import Look
from kdrt.serve.workers.specs import WorkerSpec

_logger = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that a worker gets to end."""

_MOST_FAILURES = 3
"""Starts in a row without a worker that is ready, until there is little hope."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_STEADY = 60.0
"""Seconds after which a worker that was ready counts as one that works."""


class AnyWorker(Protocol):
    """What is needed of a `kdrt.serve.workers.worker.Worker`, where each is described."""

    name: str
    outstanding: int

    @property
    def pid(self) -> int: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def refused(self) -> Exception | None: ...
    @property
    def figures(self) -> Sequence[Metric]: ...
    def wait_ready(self) -> bool: ...
    def wait_ended(self) -> None: ...
    def how_it_ended(self) -> str: ...
    def run(self, ask: Ask) -> AsyncGenerator[Event, None]: ...
    async def look(self, look: Look, model: str, denoised: Tensor) -> Any: ...
    def end(self, patience: float) -> None: ...


def pause_after(failures: int, first: float = _FIRST_PAUSE) -> float:
    """Seconds to wait after so many failures in a row: twice as many each time, up to a minute."""
    return min(first * 2.0 ** min(failures - 1, 16), _LONGEST_PAUSE)


@dataclass(frozen=True)
class _End:
    """How one attempt at running the worker ended.

    Attributes:
        what: has happened, in a sentence without its full stop.
        was_ready: whether it was loaded and warm.
        was_steady: whether it was so for a while.
        is_final: whether the next attempt would end in the same way.
    """

    what: str
    was_ready: bool = False
    was_steady: bool = False
    is_final: bool = False


class Keeper:
    """Keeps one worker running, with a thread that waits for its end.

    A worker that ends is started again, after a pause that grows with every failure in a row. It is
    given up if it never comes up: in the beginning if it says why it cannot, or has not after a few
    attempts; later, when it is known to work, only if nothing else is left.

    Attributes:
        name: of the worker.
        restarts: how often it was started again.

    Args:
        spec: how to start it.
        make: starts it.
        is_needed: whether no other worker is ready.
        on_ready: called, in its thread, when the worker is ready.
        on_failure: likewise, when it is given up.
        first_pause: seconds before it is started again for the first time.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        make: Callable[[WorkerSpec], AnyWorker],
        *,
        is_needed: Callable[[], bool],
        on_ready: Callable[[], object],
        on_failure: Callable[[KdrtError], object],
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self.name = spec.name
        self.restarts = 0
        self._spec = spec
        self._make = make
        self._is_needed = is_needed
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._worker: AnyWorker | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name=f"kdrt-worker-{spec.name}", daemon=True
        )

    @property
    def worker(self) -> AnyWorker | None:
        """The worker, if its process runs."""
        return self._worker

    def start(self) -> None:
        """Begin to keep it running."""
        self._thread.start()

    def close(self) -> None:
        """End the worker, and wait until it has ended. Closing again does nothing."""
        with self._lock:
            self._is_closed.set()
            worker = self._worker
        if worker is not None:
            # One that is being loaded has nothing to lose.
            worker.end(_PATIENCE if worker.is_ready else 0.0)
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        failures, was_ever_ready = 0, False
        while True:
            end = self._attempt()
            if self._is_closed.is_set():
                return
            was_ever_ready |= end.was_ready
            failures = 1 if end.was_steady else failures + 1
            if not end.was_ready and self._is_hopeless(end, failures, was_ever_ready):
                often = f", {failures} times in a row; the lines above it in the log may say why"
                self._on_failure(KdrtError(end.what + ("" if end.is_final else often)))
                return
            pause = pause_after(failures, self._first_pause)
            _logger.warning("%s; it is started again in %g s", end.what, pause)
            if self._is_closed.wait(pause):
                return
            self.restarts += 1

    def _is_hopeless(self, end: _End, failures: int, was_ever_ready: bool) -> bool:
        """Whether to give up a worker that did not come up."""
        if was_ever_ready:
            return failures >= _MOST_FAILURES and self._is_needed()
        return end.is_final or failures >= _MOST_FAILURES

    def _attempt(self) -> _End:
        """Run the worker until it ends."""
        begun = time.monotonic()
        try:
            worker = self._make(self._spec)
        except Exception as error:  # no further process or thread, or it cannot be told what to do
            return _End(f"worker {self.name} cannot be started: {error}")
        with self._lock:
            self._worker = worker
            is_late = self._is_closed.is_set()
        if is_late:
            worker.end(0)
        was_ready = worker.wait_ready()
        ready_after = time.monotonic() - begun
        if was_ready:
            _logger.info(
                "worker %s (process %d) is ready after %.1f s", self.name, worker.pid, ready_after
            )
            self._on_ready()
        worker.wait_ended()
        self._worker = None
        if worker.refused is not None:
            what = f"worker {self.name} cannot be started: {worker.refused}"
            return _End(what, is_final=True)
        what = f"worker {self.name} (process {worker.pid}) {worker.how_it_ended()}"
        if not was_ready:
            return _End(f"{what} before it was ready")
        ran = time.monotonic() - begun - ready_after
        return _End(what, was_ready=True, was_steady=ran >= _STEADY)
