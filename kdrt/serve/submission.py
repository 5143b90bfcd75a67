"""A request that a service has accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Protocol

from kdrt.batching.handle import ImageStep
from kdrt.errors import CancelledError, KdrtError
from kdrt.pipeline.result import Result
from kdrt.serve.errors import DeadlineError


class Making(Protocol):
    """What a submission needs of a `kdrt.batching.handle.Handle`, or of what stands for one."""

    @property
    def steps(self) -> int:
        """Of each image."""
        ...

    def cancel(self) -> bool:
        """End it, with `kdrt.errors.CancelledError`; whether it was not over yet."""
        ...

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Call ``function`` when it is over, in any thread."""
        ...

    def __await__(self) -> Generator[Any, None, Result[Any]]: ...

    def __aiter__(self) -> AsyncIterator[ImageStep]: ...


class Submission:
    """A request on its way, for the event loop that submitted it.

    Attributes:
        model: the name of the model that makes it.
        images: how many images it is about.
        was_read: whoever watches it calls this in the end: nobody looks at its steps any more.
            Until then its model stays loaded.

    Args:
        handle: makes it.
        model: the name of the model.
        images: how many images it is about.
        deadline: seconds until it is cancelled.
        waited: seconds of them that are over.
        on_read: called once nobody looks at its steps any more.
    """

    def __init__(
        self,
        handle: Making,
        model: str,
        images: int,
        deadline: float,
        *,
        waited: float = 0.0,
        on_read: Callable[[], object] = lambda: None,
    ) -> None:
        self.model = model
        self.images = images
        self._handle = handle
        self._reason: KdrtError | None = None
        self.was_read = on_read
        loop = asyncio.get_running_loop()
        late = DeadlineError(f"the image was not made within {deadline:g} s, and was cancelled")
        timer = loop.call_later(max(0.0, deadline - waited), self.cancel, late)

        def over(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(timer.cancel)

        handle.add_done_callback(over)

    @property
    def steps(self) -> int:
        """Of each image."""
        return self._handle.steps

    def cancel(self, reason: KdrtError) -> bool:
        """End it at the next step; :meth:`result` raises ``reason``. Does nothing where it is over
        or was cancelled before.

        Returns:
            Whether it did.
        """
        if self._reason is not None or not self._handle.cancel():
            return False
        self._reason = reason
        return True

    async def result(self) -> Result[Any]:
        """The images. A coroutine that is cancelled meanwhile cancels the request.

        Raises:
            KdrtError: it failed, or the reason that it was cancelled for.
        """
        try:
            return await self._handle
        except CancelledError as error:
            raise self._reason or error from None

    async def __aiter__(self) -> AsyncIterator[ImageStep]:
        """The steps of all images as they come, if it was submitted to be watched; then
        :meth:`result` tells how it ended."""
        async for step in self._handle:
            yield step
