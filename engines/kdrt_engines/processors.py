"""The processors of this process: how many there are, and how threads that work together are kept
on different ones.

Linux wakes a thread on its caller's processor if no other seems idle. In a virtual machine a
processor that has slept for a while counts as taken by the host, so two threads share one until the
scheduler separates them: a run of a network takes twice as long, and often the next one too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def cores() -> int:
    """The cores this process may use: in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Processors:
    """Keeps threads off the processor of their caller while they work for it.

    Args:
        threads: the native ids of those besides the caller's.
    """

    def __init__(self, threads: Sequence[int]) -> None:
        self._threads = threads
        self._placed: tuple[int, set[int]] | None = None
        self._current = _current_processor()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within this context the other threads do not run on the caller's processor. If there are
        just as many processors as threads, each thread is pinned to one, the caller too. With
        more, the scheduler chooses among the rest. With fewer, or on systems without affinity,
        nothing changes."""
        allowed = self._pin()
        try:
            yield
        finally:
            if allowed is not None:
                os.sched_setaffinity(0, allowed)

    def _pin(self) -> set[int] | None:
        """The processors to give back to the caller afterwards; None if it was not pinned."""
        if self._current is None or not self._threads:
            return None
        allowed, here = os.sched_getaffinity(0), self._current()
        spare = len(allowed) - 1 - len(self._threads)
        if here not in allowed or spare < 0:
            return None
        try:
            if self._placed != (here, allowed):
                others = sorted(allowed - {here})
                for index, thread in enumerate(self._threads):
                    os.sched_setaffinity(thread, others if spare else {others[index]})
                self._placed = here, allowed
            if not spare:
                os.sched_setaffinity(0, {here})
        except OSError:  # not permitted here, or a thread is gone
            self._current = None
            return None
        return None if spare else allowed


def _current_processor() -> Callable[[], int] | None:
    """A function that returns the processor its caller runs on; None if this system has none."""
    if sys.platform != "linux":
        return None
    # Unlike CDLL, PyDLL does not release the interpreter, which others may be waiting for.
    current: Callable[[], int] | None = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
    return current
