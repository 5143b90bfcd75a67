"""The calls of a pipeline, one at a time.

Whatever a pipeline does writes into the same buffers, so its calls exclude each other: another
thread waits until a call is over. A generation in steps is one call, from its first step to its
last. Code of the user's that runs in between (a callback, the body of a loop over the steps) is
outside: it may use what it was handed, but a call that it begins would wait for itself, and is
refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from threading import Thread, current_thread
from typing import Any, ParamSpec, TypeVar, cast

from kdrt.common.memory import name_memory_failure
from kdrt.common.streams import taken_within
from kdrt.common.torch_modes import neutral_modes
from kdrt.errors import EngineError, InvalidRequestError

Value = TypeVar("Value")
Final = TypeVar("Final")
Arguments = ParamSpec("Arguments")


class Calls:
    """Lets one call of a pipeline at a time use its buffers.

    Args:
        let_go: called when memory did not suffice, to free what can be made again.
    """

    def __init__(self, let_go: Callable[[], object]) -> None:
        self._let_go = let_go
        self._process = os.getpid()
        self._free = threading.Lock()
        self._counting = threading.RLock()  # the garbage collector may come to leave in between
        self._call: _Call | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Within: one call, or a part of that in whose middle kdrt itself is.

        Raises:
            InvalidRequestError: this thread is outside, in the middle of a call.
            EngineError: this process was forked from the one that loaded the pipeline.
        """
        call = self._begin()
        try:
            with call.inside():
                yield
        finally:
            self._leave(call)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Within: a part of the call in whose middle this thread is, also outside, as for the VAE,
        whose buffers no step needs; where it is in none, one call."""
        call = self._call
        mine = call is not None and call.is_of_this_thread()
        with self._part_of(call if mine else None):
            yield

    def over(self, steps: Generator[Value, None, Final]) -> Generator[Value, None, Final]:
        """The same steps in one call, which begins with the first and ends after the last, or when
        this iterator is closed or let go."""
        call = self._begin()
        try:
            return (yield from taken_within(steps, call.inside_as_owner))
        finally:
            self._leave(call)

    def function(self, function: Callable[..., Value]) -> Callable[..., Value]:
        """``function`` as a part of the call in which it was asked for, whichever thread wants it;
        after that call, as one of its own."""
        call = self._call

        def run(*arguments: object) -> Value:
            with self._part_of(call):
                return function(*arguments)

        return run

    def users(self, function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        """A function of the user's, called outside: in this thread, or in another that works for
        the call."""

        @wraps(function)
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Value:
            assert self._call is not None  # whoever calls this is inside
            with self._call.outside():
                return function(*arguments, **options)

        return run

    def _begin(self) -> _Call:
        _check_process(self._process)
        call = self._call
        if call is not None and call.is_of_this_thread():
            call.check_inside()
            with self._counting:
                call.holds += 1
            return call
        call = _Call(self._let_go)
        self._free.acquire()
        self._call = call
        return call

    @contextmanager
    def _part_of(self, call: _Call | None) -> Iterator[None]:
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

    def _leave(self, call: _Call) -> None:
        with self._counting:
            call.holds -= 1
            if call.holds:
                return
            self._call = None
        self._free.release()


def _check_process(process: int) -> None:
    """Raises EngineError: this is another one, which has none of the engines' threads."""
    if os.getpid() != process:
        raise EngineError(
            f"this pipeline was loaded in process {process}, whose threads this one, forked from "
            "it, does not have: load it in each worker, or start workers by spawn "
            "(multiprocessing.get_context('spawn'); gunicorn without --preload)"
        )


class _Call:
    """One call.

    Attributes:
        holds: how many parts of it are not over; the call is when none is left.
        owner: the thread that has to go on with it.
    """

    def __init__(self, let_go: Callable[[], object]) -> None:
        self.holds = 1
        self.owner = current_thread()
        self._process = os.getpid()
        self._helpers: set[Thread] = set()
        self._let_go = let_go
        self._working = threading.RLock()
        self._inside: Thread | None = None
        self._modes = ExitStack()

    def is_of_this_thread(self) -> bool:
        """Whether a call begun in this thread would have to wait for itself."""
        return current_thread() in (self.owner, self._inside, *self._helpers)

    def check_inside(self) -> None:
        """Raises InvalidRequestError: this thread runs the user's code."""
        if self._inside != current_thread():
            raise InvalidRequestError(
                "this thread is in the middle of another generation on this pipeline, and both "
                "need its buffers: take all of its steps or close() it first, or load a second "
                "pipeline"
            )

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within: code of kdrt's, one thread at a time, in PyTorch's own modes."""
        _check_process(self._process)
        me = current_thread()
        if me in self._helpers:  # whoever waits for it is inside
            self.check_inside()
        with self._working:
            if self._inside == me:
                yield
                return
            self._inside, self._modes = me, neutral_modes()
            try:
                yield
            except Exception as error:
                name_memory_failure(error, self._let_go)
                raise
            finally:
                self._inside = None
                self._modes.close()

    def inside_as_owner(self) -> AbstractContextManager[None]:
        """Likewise, in the thread that goes on with it from now on."""
        self.owner = current_thread()
        return self.inside()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Within: code of the user's, in the caller's modes."""
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


Method = TypeVar("Method", bound=Callable[..., Any])


def _within(part: Callable[[Calls], AbstractContextManager[None]]) -> Callable[[Method], Method]:
    """Makes a method of what wraps a pipeline in ``self.pipeline`` a part of its calls."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            with part(self.pipeline.calls):
                return method(self, *arguments, **options)

        return cast(Method, call)

    return decorate


one_call = _within(Calls.one)
"""Such a method as one of the pipeline's calls."""

part_of_call = _within(Calls.part)
"""Likewise, also in the middle of another: see :meth:`Calls.part`."""
