"""The calls of a pipeline, one at a time.

All calls of a pipeline write into the same buffers, so they exclude each other: a call from
another thread waits for the running one. A generation in steps is one call, from its first step to
its last. The user's code that runs in between (a callback, the body of a loop over the steps) may
use what it was given, but cannot begin another call: that would wait for itself, and is refused.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from kdrt.common.streams import taken_within
from kdrt.errors import CancelledError, PipelineClosedError
from kdrt.pipeline.call_state import Call, check_process

Value = TypeVar("Value")
Final = TypeVar("Final")
Arguments = ParamSpec("Arguments")


class Calls:
    """Lets one call at a time use the buffers of a pipeline.

    Args:
        release_buffers: called when memory ran out, to free what can be made again.
    """

    def __init__(self, release_buffers: Callable[[], object]) -> None:
        self._release_buffers = release_buffers
        self._process = os.getpid()
        self._free = threading.Lock()
        # Reentrant: the garbage collector may end a generation while this thread holds it.
        self._counting = threading.RLock()
        self._call: Call | None = None
        self._on_end: Callable[[], object] | None = None
        self._is_closed = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One call, or a part of the running call where kdrt itself makes it.

        Raises:
            InvalidRequestError: this thread runs the user's code in the middle of a call.
            PipelineClosedError: the pipeline is closed.
            EngineError: this process was forked from the one that loaded the pipeline.
        """
        call = self._begin()
        try:
            with call.inside():
                yield
        finally:
            self._leave(call)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """A part of this thread's running call, also where the user's code makes it; without a
        running call, a call of its own. For the VAE, whose buffers no step uses."""
        call = self._call
        with self._part_of(call if self.is_of_this_thread() else None):
            yield

    def exclusive_steps(
        self, steps: Generator[Value, None, Final]
    ) -> Generator[Value, None, Final]:
        """The same steps as one call. It begins with the first step, and ends after the last or
        when this generator is closed.

        Raises:
            CancelledError: the call was cancelled.
        """
        call = self._begin()
        try:
            return (yield from taken_within(steps, call.next_step))
        finally:
            self._leave(call)

    def nested_function(self, function: Callable[..., Value]) -> Callable[..., Value]:
        """``function`` as a part of the present call, whichever thread runs it; after the end of
        that call, as a call of its own."""
        call = self._call

        def run(*arguments: object) -> Value:
            with self._part_of(call):
                return function(*arguments)

        return run

    def user_function(self, function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        """A function of the user's, which kdrt calls in the middle of a call: in the thread of the
        call, or in one that works for it."""

        @wraps(function)
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Value:
            assert self._call is not None  # kdrt calls it during a call only
            with self._call.outside():
                return function(*arguments, **options)

        return run

    def callback(self, function: Callable[Arguments, object]) -> Callable[Arguments, None]:
        """A callback of the user's, which ends the call with CancelledError by returning False."""
        users = self.user_function(function)

        @wraps(function)
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
            if users(*arguments, **options) is False:
                raise CancelledError("the callback returned False, which ends the call")

        return run

    def cancel(self) -> bool:
        """End the running call at its next step, from any thread; whether there is one."""
        with self._counting:
            if self._call is not None:
                self._call.is_cancelled = True
            return self._call is not None

    def check_cancelled(self) -> None:
        """Raises CancelledError: the running call is to end here. For loops over steps that do not
        go through :meth:`exclusive_steps`."""
        if self._call is not None:
            self._call.check_cancelled()

    def close(self, release: Callable[[], object]) -> None:
        """Wait for a turn, call ``release`` and refuse all later calls.

        A running call of another thread is waited for; of the calls that wait too, some may come
        first. A running call of this thread is cancelled, and ``release`` called when it ends,
        before any other begins.
        """
        call = self._call
        if call is not None and call.is_of_this_thread():
            call.is_cancelled = True
            self._close(release)
            return
        with contextlib.suppress(PipelineClosedError), self.exclusive():
            self._close(release)

    def is_of_this_thread(self) -> bool:
        """Whether this thread is in the middle of the running call: to wait here for another call
        would be to wait for ever."""
        call = self._call
        return call is not None and call.is_of_this_thread()

    def check_open(self) -> None:
        """Raises PipelineClosedError: the pipeline is closed."""
        if self._is_closed:
            raise PipelineClosedError(
                "this pipeline is closed, and its engines are freed; load the bundle again"
            )

    def _close(self, release: Callable[[], object]) -> None:
        if not self._is_closed:
            self._is_closed, self._on_end = True, release

    def _begin(self) -> Call:
        check_process(self._process)
        call = self._call
        if call is not None and call.is_of_this_thread():
            if not call.is_inside():
                self.check_open()
            call.check_inside()
            with self._counting:
                call.holds += 1
            return call
        call = Call(self._release_buffers)
        self._free.acquire()
        try:
            self.check_open()
        except PipelineClosedError:
            self._free.release()
            raise
        self._call = call
        return call

    @contextmanager
    def _part_of(self, call: Call | None) -> Iterator[None]:
        with self._counting:
            goes_on = call is not None and call is self._call
            if call is not None and goes_on:
                call.holds += 1
        if call is None or not goes_on:
            call = self._begin()
        try:
            with call.inside():
                yield
        finally:
            self._leave(call)

    def _leave(self, call: Call) -> None:
        with self._counting:
            call.holds -= 1
            if call.holds:
                return
            self._call = None
            on_end, self._on_end = self._on_end, None
        try:
            if on_end is not None:
                on_end()
        finally:
            self._free.release()


Method = TypeVar("Method", bound=Callable[..., Any])


def _within(part: Callable[[Calls], AbstractContextManager[None]]) -> Callable[[Method], Method]:
    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            with part(self.pipeline.calls):
                return method(self, *arguments, **options)

        return cast(Method, call)

    return decorate


one_call = _within(Calls.exclusive)
"""Makes a method of an object with a ``pipeline`` one of that pipeline's calls."""

part_of_call = _within(Calls.nested)
"""Makes it a part of the running call, where there is one: see :meth:`Calls.nested`."""
