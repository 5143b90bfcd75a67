"""From what a client sent to a submission: images are decoded for few requests at a time.

A decoded image takes many times the bytes of its file. The queue bounds what waits to be made, and
this what waits to get into the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import kdrt
from kdrt.adapters.lora_merge import Scale
from kdrt.serve.service import ImageService
from kdrt.serve.submission import Submission

_AT_ONCE = 4


class Intake:
    """The way of all interfaces into a service, for one event loop.

    Attributes:
        service: makes the images.

    Args:
        service: makes the images.
    """

    def __init__(self, service: ImageService) -> None:
        self.service = service
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def submit(
        self,
        read: Callable[[], kdrt.Request],
        *,
        model: str | None = None,
        loras: Mapping[str, Scale] | None = None,
        watch: bool = False,
        deadline: float | None = None,
    ) -> Submission:
        """Submit what ``read`` makes, which is called in a thread; see `ImageService.submit`.

        Raises:
            KdrtError: what ``read`` raises, or see `ImageService.submit`.
        """
        async with self._few:
            self.service.check_open()
            request = await asyncio.to_thread(read)
        # It takes its place in the queue at once, so that the queue bounds what is decoded. There
        # it may wait for its model, which those who ask for others must not wait for.
        return await self.service.submit(
            request, model=model, loras=loras, watch=watch, deadline=deadline
        )
