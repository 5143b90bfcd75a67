"""A service whose images are made by replicas: it loads no engine itself.

Everything that clients and routers see of an `ImageService` is here: the models' names and
manifests, what is refused, the queue with its bound, deadlines, drain. Only the images come from a
`kdrt.serve.replica.Replicas`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdrt.adapters.lora_merge import Scale
from kdrt.batching.handle import ImageStep
from kdrt.common.validation import MAX_INT
from kdrt.errors import CancelledError
from kdrt.pipeline.result import Result
from kdrt.request.fields import Request
from kdrt.serve.errors import NotReadyError, ReplicaLostError
from kdrt.serve.log import request_id
from kdrt.serve.looks import RemoteLooks
from kdrt.serve.metrics import Metrics
from kdrt.serve.model import ServedModel
from kdrt.serve.replica import Accepted, Ask, Begun, Done, Replica, Replicas, Stepped
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.submission import Submission

_logger = logging.getLogger(__name__)

_MOST_LOSSES = 3
"""Replicas that one request may lose: it may be what ends them."""


def replica_settings(settings: ServiceSettings) -> ServiceSettings:
    """Those for the services of the replicas: the queue is bounded in front of them, so that what
    was accepted and must go to another replica is not refused there."""
    return replace(settings, max_waiting=MAX_INT)


class RemoteService(ImageService):
    """Has images made by replicas.

    Args:
        models: the bundles, which the replicas have too.
        settings: of the whole: ``max_waiting`` counts the images of all replicas.
        replicas: make the images; they are started by :meth:`load`, and closed in the end.
        metrics: is told what happens; None makes one.

    Raises:
        KdrtError: see `ImageService`.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        settings: ServiceSettings,
        replicas: Replicas,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(models, settings, metrics)
        self._replicas = replicas

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return super().is_ready and self._replicas.is_ready

    def _start(self) -> None:
        """Start the replicas, and return when one of them is warm. Bundles that are exported again
        are loaded there too; here only what is known of them changes.

        Raises:
            KdrtError: see `Replicas.start`.
        """
        self._replicas.start(self.on_failure)

    def has_loaded(self, model: ServedModel) -> bool:
        """Whether a replica takes its requests. Which models it has in memory only it knows."""
        return self.is_ready

    def check_open(self) -> None:
        """See `ImageService`. Without any replica no request is accepted."""
        super().check_open()
        if not self._replicas.is_ready:
            raise NotReadyError("what makes the images is being started; try again in a moment")

    async def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        loras: Mapping[str, Scale] | None = None,
        watch: bool = False,
        deadline: float | None = None,
        on_begin: Callable[[int], object] | None = None,
    ) -> Submission:
        """See `ImageService.submit`; ``on_begin`` is called in the event loop.

        Raises:
            ReplicaLostError: too many replicas have ended while they had the request.
            KdrtError: see `ImageService.submit`.
        """
        served, images = self.checked(request, model, loras)
        seconds = self._seconds(deadline)
        ask = Ask(
            request=request,
            model=served.name,
            images=images,
            loras=loras,
            watch=watch,
            deadline=seconds,
            request_id=request_id.get(),
        )
        counted = _Counted(served, images, on_begin)
        handle = RemoteHandle(self._replicas, ask, served, counted.begun)
        submission = Submission(handle, served.name, images, seconds)
        self._active.add(submission)

        def over(_: object) -> None:
            self._active.discard(submission)
            counted.over(made=handle.is_made)

        handle.add_done_callback(over)
        if not await handle.accepted():
            await submission.result()  # raises why
        return submission

    def close(self) -> None:
        """End the replicas."""
        super().close()
        self._replicas.close()


class _Counted:
    """A request in the queue and in the metrics of its model.

    Raises:
        QueueFullError: too many images wait.
    """

    def __init__(
        self,
        model: ServedModel,
        images: int,
        on_begin: Callable[[int], object] | None,
    ) -> None:
        self._queue = model.queue
        self._metrics = model.metrics
        self._place = model.queue.enter(images, time.monotonic(), on_begin)

    def begun(self, images: int) -> None:
        place, now = self._place, time.monotonic()
        if self._queue.admit(place, images, now):
            self._metrics.begun(now - place.arrived)
        if place.on_begin is not None:
            place.on_begin(images)

    def over(self, *, made: bool) -> None:
        place, now = self._place, time.monotonic()
        self._queue.leave(place, now, made=made)
        if made:
            self._metrics.made(place.images, now - place.arrived)


class RemoteHandle:
    """A request that replicas make: what `kdrt.batching.handle.Handle` is of a batcher, for one
    event loop. If a replica ends before it has begun any image, another is asked.

    Args:
        replica: asked for it; it chooses one of several.
        ask: the request.
        model: that makes it, which knows how its steps are looked at.
        begun: told of so many more images that have begun.
    """

    def __init__(
        self, replica: Replica, ask: Ask, model: ServedModel, begun: Callable[[int], object]
    ) -> None:
        self._replica = replica
        self._ask = ask
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._looks = RemoteLooks(replica, model, ask.deadline)
        self._accepted: asyncio.Future[int] = self._loop.create_future()
        self._steps: asyncio.Queue[ImageStep | None] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._make())
        self._task.add_done_callback(self._over)

    @property
    def steps(self) -> int:
        """Of each image, once it is accepted."""
        return self._accepted.result()

    @property
    def is_made(self) -> bool:
        """Whether it is over, and neither failed nor was cancelled."""
        task = self._task
        return task.done() and not task.cancelled() and task.exception() is None

    async def accepted(self) -> bool:
        """Wait until it is in the queue of a replica. A coroutine that is cancelled meanwhile
        cancels the request.

        Returns:
            Whether it is; if not, it is over, and awaiting it tells why.
        """
        try:
            await asyncio.wait((self._accepted, self._task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._accepted.done()

    def cancel(self) -> bool:
        """End it; see `Handle.cancel`. The replica ends it at the next step, which nobody waits
        for."""
        return self._task.cancel()

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Call ``function`` with this handle when it is over, in the event loop."""
        self._task.add_done_callback(lambda _: function(self))

    def __await__(self) -> Generator[Any, None, Result[Any]]:
        """See `Handle`."""
        return self._awaited().__await__()

    async def __aiter__(self) -> AsyncIterator[ImageStep]:
        """See `Handle`."""
        while (step := await self._steps.get()) is not None:
            yield step
        self._steps.put_nowait(None)  # for whoever asks again

    async def _awaited(self) -> Result[Any]:
        try:
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._task.cancelled():
            raise CancelledError("this request was cancelled")
        return self._task.result()

    async def _make(self) -> Result[Any]:
        losses = 0
        while True:
            has_begun = False
            try:
                async with contextlib.aclosing(self._replica.run(self._ask)) as events:
                    async for event in events:
                        if isinstance(event, Accepted):
                            if not self._accepted.done():  # by a replica that has ended since
                                self._accepted.set_result(event.steps)
                        elif isinstance(event, Begun):
                            has_begun = True
                            self._begun(event.images)
                        elif isinstance(event, Stepped):
                            self._steps.put_nowait(self._looks.step(event))
                        elif isinstance(event, Done):
                            return event.result
                        else:
                            raise event.error
                raise ReplicaLostError("a replica has left a request")
            except ReplicaLostError as error:
                losses += 1
                if has_begun or losses == _MOST_LOSSES:
                    raise
                _logger.warning("another replica is asked for a request: %s", error)

    def _over(self, task: asyncio.Task[Result[Any]]) -> None:
        if not self.is_made:
            self._looks.close()
        if not task.cancelled():
            task.exception()  # a client that has left asks for nothing
        self._steps.put_nowait(None)
