"""A request that was submitted: its images, when they are made, and its steps until then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images
from kdrt.pipeline.call_state import check_process
from kdrt.pipeline.result import Result
from kdrt.vae.preview import PreviewStep

ImagesT = TypeVar("ImagesT", bound=Images)

_logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ImageStep(PreviewStep):
    """A completed step of one image of a request: its tensors are ``[1, C, h, w]``.

    Attributes:
        image: which image of the request, counted from 0.
    """

    image: int = 0


class Steps:
    """Steps on their way from the thread that takes them to whoever waits for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[ImageStep, torch.cuda.Event | None]] = deque()
        self._listeners: list[Callable[[], object]] = []
        self._is_closed = False

    def add(self, step: ImageStep, ready: torch.cuda.Event | None) -> None:
        """One more; on CUDA its tensors are there after ``ready``."""
        with self._changed:
            self._waiting.append((step, ready))
            self._tell()

    def close(self) -> None:
        """There are no more."""
        with self._changed:
            self._is_closed = True
            self._tell()

    def take(self) -> ImageStep | None:
        """The next one, waited for; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._next()

    async def take_async(self) -> ImageStep | None:
        """The same for a coroutine."""
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed while this waited
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.append(tell)
        try:
            while True:
                with self._changed:
                    if self._waiting or self._is_closed:
                        return self._next()
                await changed.wait()
                changed.clear()
        finally:
            with self._changed:
                self._listeners.remove(tell)

    def _next(self) -> ImageStep | None:
        if not self._waiting:
            return None
        step, ready = self._waiting.popleft()
        if ready is not None:
            torch.cuda.current_stream(step.latents.device).wait_event(ready)
            _hold_for_this_stream(step.latents)
            _hold_for_this_stream(step.denoised)
        return step

    def _tell(self) -> None:
        self._changed.notify_all()
        for tell in self._listeners:
            tell()


class Made(NamedTuple, Generic[ImagesT]):
    """What a future of a request is set to.

    Attributes:
        result: the images.
        warn: warns of what was not read as it may be meant, for whoever asks first.
    """

    result: Result[ImagesT]
    warn: Callable[[], object]


class Handle(Generic[ImagesT]):
    """A submitted request, returned by :meth:`kdrt.Batcher.submit`.

        handle = batcher.submit({"prompt": "a red circle", "seed": 7}, watch=True)
        for step in handle:                    # or: async for step in handle
            print(step.index, step.sigma)
        handle.result().save("circle.png")     # or: (await handle).save(…)

    Any thread and any event loop may use it.

    Attributes:
        number: counts the requests of a process, from 1.
        steps: how many steps each image takes.
    """

    def __init__(
        self,
        steps: int,
        future: Future[Made[ImagesT]],
        taken: Steps | None,
        cancel: Callable[[], object],
        thread: threading.Thread,
    ) -> None:
        self.number = next(_numbers)
        self.steps = steps
        self._future = future
        self._steps = taken
        self._cancel = cancel
        self._thread = thread
        self._process = os.getpid()
        self._has_warned = False

    def __repr__(self) -> str:
        state = "done" if self.done() else "waiting or in flight"
        return f"<Handle of request {self.number}, {state}>"

    def done(self) -> bool:
        """Whether the request is over: made, failed or cancelled."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Result[ImagesT]:
        """Wait for the images and return them.

        Args:
            timeout: seconds to wait at most; None waits without a limit.

        Raises:
            TimeoutError: the images are not made by then; the request goes on.
            CancelledError: the request was cancelled.
            InvalidRequestError: a callback waits for a request that is not over.
            EngineError: this process was forked while the request was being made.
            KdrtError: the request failed, as a call of :class:`kdrt.Pipeline` does.

        Warns:
            TruncationWarning: a prompt is too long; only at the first call.
            PromptSyntaxWarning: part of a prompt uses the syntax of another program; only at the
                first call.
        """
        self._check_can_wait()
        with self._timed(timeout):
            made = self._future.result(timeout)
        return self._told(made)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the request and return the exception it failed with (CancelledError if it was
        cancelled); None if it succeeded.

        Args:
            timeout: seconds to wait at most; None waits without a limit.

        Raises:
            TimeoutError: the request is not over by then, and goes on.
            InvalidRequestError: a callback waits for a request that is not over.
            EngineError: this process was forked while the request was being made.
        """
        self._check_can_wait()
        with self._timed(timeout):
            return self._future.exception(timeout)

    def cancel(self) -> bool:
        """End the request at the next evaluation; :meth:`result` then raises CancelledError.

        Returns:
            True if the request was not over yet.
        """
        if self.done():
            return False
        self._cancel()
        return True

    def add_done_callback(self, function: Callable[[Handle[ImagesT]], object]) -> None:
        """Call ``function`` with this handle when the request is over, or at once if it already is.
        The function runs in a thread of the batcher, so it should be quick."""

        def call(_: object) -> None:
            try:
                function(self)
            except BaseException:
                _logger.exception("a callback of request %d failed", self.number)

        self._future.add_done_callback(call)

    def __iter__(self) -> Iterator[ImageStep]:
        """The steps of all images as they are made. Each is handed out once. After the last,
        :meth:`result` says how the request ended.

        Raises:
            InvalidRequestError: the request was submitted without ``watch``.
        """
        steps = self._watched()
        return iter(steps.take, None)

    async def __aiter__(self) -> AsyncIterator[ImageStep]:
        """The same for a coroutine."""
        steps = self._watched()
        while (step := await steps.take_async()) is not None:
            yield step

    def __await__(self) -> Generator[Any, None, Result[ImagesT]]:
        """The result, for a coroutine. If the coroutine is cancelled while it waits, so is the
        request."""
        return self._awaited().__await__()

    async def _awaited(self) -> Result[ImagesT]:
        try:
            made = await asyncio.wrap_future(self._shielded())
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._told(made)

    def _shielded(self) -> Future[Made[ImagesT]]:
        """A future of the same end, which a coroutine may cancel without touching ours."""
        shielded: Future[Made[ImagesT]] = Future()

        def copy(future: Future[Made[ImagesT]]) -> None:
            if not shielded.set_running_or_notify_cancel():
                return
            error = future.exception()
            if error is not None:
                shielded.set_exception(error)
            else:
                shielded.set_result(future.result())

        self._future.add_done_callback(copy)
        return shielded

    def _watched(self) -> Steps:
        self._check_can_wait()
        if self._steps is None:
            raise InvalidRequestError(
                "the steps of this request are not kept: submit it with watch=True to go over them"
            )
        return self._steps

    def _check_can_wait(self) -> None:
        """Raises InvalidRequestError: this is the thread that would have to go on. EngineError:
        this process was forked from the one that has it."""
        if not self.done():
            check_process(self._process)
        if threading.current_thread() is self._thread and not self.done():
            raise InvalidRequestError(
                f"a callback cannot wait for request {self.number}, as nothing goes on until it "
                "returns: use add_done_callback"
            )

    @contextlib.contextmanager
    def _timed(self, timeout: float | None) -> Iterator[None]:
        """Within the block a wait that takes too long says so."""
        try:
            yield
        except FutureTimeoutError:
            if self._future.done():  # the request failed with one of its own
                raise
            raise TimeoutError(
                f"request {self.number} is not made after {timeout:g} s, and goes on; wait "
                "longer, or cancel() it"
            ) from None

    def _told(self, made: Made[ImagesT]) -> Result[ImagesT]:
        if not self._has_warned:
            self._has_warned = True
            made.warn()
        _hold_for_this_stream(made.result.images)
        return made.result


def _hold_for_this_stream(made: Images) -> None:
    """Memory of a tensor that was made on another stream is not used again before what this stream
    does with it is done."""
    if isinstance(made, Tensor) and made.is_cuda:
        made.record_stream(torch.cuda.current_stream(made.device))
