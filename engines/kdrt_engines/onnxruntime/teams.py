"""Threads that compute the parts of one thing together.

A thread that sleeps takes up to milliseconds to wake, as long as a step of a small network. So
between two runs a team looks for its next one for a moment, letting others have the interpreter all
the while, before it goes to sleep. While it works, its threads are kept apart
(see :mod:`kdrt_engines.processors`).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence

from kdrt_engines.processors import Processors

_PATIENCE = 0.003
"""Seconds of looking before sleeping: more than a sampler takes between two runs of a network."""

Work = Callable[[], None]


class Team:
    """The caller's thread and some more. One caller at a time.

    Args:
        size: how many threads, the caller's included.
    """

    def __init__(self, size: int) -> None:
        self._helpers = [_Helper() for _ in range(size - 1)]
        ids = []
        for helper in self._helpers:
            thread = threading.Thread(target=helper.live, name="kdrt-team", daemon=True)
            thread.start()
            weakref.finalize(self, helper.end)
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
        at_work = self._helpers[: len(others)]
        for helper, part in zip(at_work, others, strict=True):
            helper.start(part)
        try:
            first()
        finally:
            # Even then: they write to memory that the caller may use again.
            errors = [helper.wait() for helper in at_work]
        for error in errors:
            if error is not None:
                raise error


class _Helper:
    """What one thread is asked to do, and how far it is."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._error: BaseException | None = None
        self._asked = self._done = 0
        self._ended = False
        self._wake, self._rest = threading.Event(), threading.Event()

    def start(self, work: Work) -> None:
        self.wait()  # it is still at work where a caller was interrupted
        self._work = work
        self._asked += 1
        self._wake.set()

    def wait(self) -> BaseException | None:
        """Until the work is done; what went wrong with it."""
        _look(lambda: self._done == self._asked, self._rest)
        error, self._error, self._work = self._error, None, None
        return error

    def end(self) -> None:
        """Let the thread end, after what it is at."""
        self._ended = True
        self._wake.set()

    def live(self) -> None:
        """What the thread does."""
        while True:
            _look(lambda: self._done != self._asked or self._ended, self._wake)
            if self._done == self._asked:
                return
            try:
                assert self._work is not None
                self._work()
            except BaseException as error:
                self._error = error
            self._done = self._asked
            self._rest.set()


def _look(found: Callable[[], bool], event: threading.Event) -> None:
    """Wait until ``found``, which somebody makes true before setting the event."""
    patience = time.perf_counter() + _PATIENCE
    while not found():
        if time.perf_counter() < patience:
            time.sleep(0)  # gives way to whoever wants the interpreter
        else:
            event.wait()
            event.clear()
