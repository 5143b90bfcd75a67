"""One call of a pipeline: which thread runs it, and whether kdrt's or the user's code is running.

While kdrt's code runs, PyTorch's modes are neutral. While the user's code runs (a callback, a
sampler of the user's, the body of a loop over the steps), they are the caller's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Thread, current_thread

from kdrt.common.memory import raise_if_out_of_memory
from kdrt.common.torch_modes import neutral_modes
from kdrt.errors import CancelledError, EngineError, InvalidRequestError


class Call:
    """One call.

    Args:
        release_buffers: called when memory ran out, to free what can be made again.

    Attributes:
        holds: how many of its parts have not ended; the call ends when it is 0.
        owner: the thread that continues it.
        is_cancelled: whether it ends at the next step.
    """

    def __init__(self, release_buffers: Callable[[], object]) -> None:
        self.holds = 1
        self.owner = current_thread()
        self.is_cancelled = False
        self._process = os.getpid()
        self._helpers: set[Thread] = set()
        self._release_buffers = release_buffers
        self._working = threading.RLock()
        self._inside: Thread | None = None
        self._modes = ExitStack()

    def is_of_this_thread(self) -> bool:
        """Whether another call from this thread would wait for this one forever."""
        return current_thread() in (self.owner, self._inside, *self._helpers)

    def is_inside(self) -> bool:
        """Whether this thread runs kdrt's code, and not the user's."""
        return self._inside == current_thread()

    def check_inside(self) -> None:
        """Raises InvalidRequestError: this thread runs the user's code."""
        if not self.is_inside():
            raise InvalidRequestError(
                "this thread is in the middle of another generation on this pipeline, and both "
                "need its buffers: take all of its steps or close() it first, or load a second "
                "pipeline"
            )

    def check_cancelled(self) -> None:
        """Raises CancelledError: the call is to end here."""
        if self.is_cancelled:
            raise CancelledError("this call was cancelled; the pipeline can be used again")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block kdrt's code runs, in one thread at a time and in neutral modes."""
        check_process(self._process)
        me = current_thread()
        if me in self._helpers:  # the thread that waits for this one is inside
            self.check_inside()
        with self._working:
            if self._inside == me:
                yield
                return
            self._inside, self._modes = me, neutral_modes()
            try:
                yield
            except Exception as error:
                raise_if_out_of_memory(error, self._release_buffers)
                raise
            finally:
                self._inside = None
                self._modes.close()

    def next_step(self) -> AbstractContextManager[None]:
        """As :meth:`inside`, for the next step; this thread is the owner from now on.

        Raises:
            CancelledError: the call is to end here.
        """
        self.owner = current_thread()
        self.check_cancelled()
        return self.inside()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within the block the user's code runs, in the caller's modes."""
        me = current_thread()
        if self._inside != me:
            self._helpers.add(me)
            try:
                yield
            finally:
                self._helpers.discard(me)
            return
        self._inside = None
        self._modes.close()
        try:
            yield
        finally:
            self._inside, self._modes = me, neutral_modes()


def check_process(process: int) -> None:
    """Raises EngineError: this process was forked from ``process``, and lacks the threads of its
    engines."""
    if os.getpid() != process:
        raise EngineError(
            f"this pipeline was loaded in process {process}, whose threads this one, forked from "
            "it, does not have: load it in each worker, or start workers by spawn "
            "(multiprocessing.get_context('spawn'); gunicorn without --preload)"
        )
