"""Threads that compute the parts of one batch together.

A thread that sleeps takes up to milliseconds to wake, as long as a step of a small network. So
between two runs the threads of a pool poll for work for a moment, yielding the interpreter all the
while, before they go to sleep. While they work, they are kept on processors of their own (see
:mod:`kdrt_engines.processors`).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence

from kdrt_engines.processors import Processors

_POLL_SECONDS = 0.003
"""How long to poll before sleeping: more than a sampler takes between two runs of a network."""

Work = Callable[[], None]


class ThreadPool:
    """The caller's thread and some workers. One caller at a time.

    Args:
        size: how many threads, the caller's included.
    """

    def __init__(self, size: int) -> None:
        self._workers = [_Worker() for _ in range(size - 1)]
        ids = []
        for worker in self._workers:
            thread = threading.Thread(target=worker.loop, name="kdrt-pool", daemon=True)
            thread.start()
            weakref.finalize(self, worker.stop)
            assert thread.native_id is not None
            ids.append(thread.native_id)
        self._processors = Processors(ids)

    def run(self, parts: Sequence[Work]) -> None:
        """Run every part on a thread of its own, the first on the caller's, and wait for all.

        Raises:
            Whatever a part raises, when all have ended.
        """
        with self._processors.apart():
            self._run(parts)

    def _run(self, parts: Sequence[Work]) -> None:
        first, *others = parts
        busy = self._workers[: len(others)]
        for worker, part in zip(busy, others, strict=True):
            worker.start(part)
        try:
            first()
        finally:
            # Even then: they write to memory that the caller may use again.
            errors = [worker.wait() for worker in busy]
        for error in errors:
            if error is not None:
                raise error


class _Worker:
    """One thread: its work, and how much of it is done."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._error: BaseException | None = None
        self._started = self._done = 0
        self._stopping = False
        self._wake, self._rest = threading.Event(), threading.Event()

    def start(self, work: Work) -> None:
        """Give the thread its next work, after what it may still do for an interrupted caller."""
        self.wait()
        self._work = work
        self._started += 1
        self._wake.set()

    def wait(self) -> BaseException | None:
        """Wait until the work is done. Returns what it raised."""
        _wait_until(lambda: self._done == self._started, self._rest)
        error, self._error, self._work = self._error, None, None
        return error

    def stop(self) -> None:
        """Let the thread end, after the work it has."""
        self._stopping = True
        self._wake.set()

    def loop(self) -> None:
        """What the thread runs."""
        while True:
            _wait_until(lambda: self._done != self._started or self._stopping, self._wake)
            if self._done == self._started:
                return
            try:
                assert self._work is not None
                self._work()
            except BaseException as error:
                self._error = error
            self._done = self._started
            self._rest.set()


def _wait_until(condition: Callable[[], bool], event: threading.Event) -> None:
    """Wait for a condition that somebody makes true before setting the event."""
    deadline = time.perf_counter() + _POLL_SECONDS
    while not condition():
        if time.perf_counter() < deadline:
            time.sleep(0)  # yield to whoever wants the interpreter
        else:
            event.wait()
            event.clear()
