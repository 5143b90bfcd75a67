"""All workers, and which of them makes a request."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from PIL import Image
from torch import Tensor

from kdrt.errors import KdrtError
from kdrt.serve.errors import SHUTTING_DOWN, ReplicaLostError, ShuttingDownError
from kdrt.serve.replica import Ask, Begun, Event
from kdrt.serve.workers.keeper import AnyWorker, Keeper
from kdrt.serve.workers.specs import WorkerSpec
from kdrt.serve.workers.worker import Worker

_POLL = 0.05
"""Seconds between two looks for a worker that is ready."""


class WorkerPool:
    """Worker processes, as `kdrt.serve.replica.Replicas`. Those that end are started again.

    Args:
        specs: of the workers.
        make: starts one.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        make: Callable[[WorkerSpec], AnyWorker] = Worker,
    ) -> None:
        self._keepers = [
            Keeper(
                spec,
                make,
                is_needed=lambda: not self.is_ready,
                on_ready=self._tell,
                on_failure=self._fail,
            )
            for spec in specs
        ]
        self._changed = threading.Condition()
        self._is_closed = False
        self._failure: KdrtError | None = None
        self._on_failure: Callable[[KdrtError], object] = lambda error: None
        self._uses = itertools.count(1)
        self._last_use: dict[str, int] = {}
        self._making: Counter[tuple[str, str]] = Counter()
        """Requests that have begun, by model and worker."""
        self._last_maker: dict[str, str] = {}
        """The worker of the one that began last, by model."""

    @property
    def workers(self) -> list[AnyWorker]:
        """Those whose process runs, ready or not."""
        return [each for keeper in self._keepers if (each := keeper.worker) is not None]

    @property
    def restarts(self) -> dict[str, int]:
        """How often each was started again, by name."""
        return {keeper.name: keeper.restarts for keeper in self._keepers}

    @property
    def is_ready(self) -> bool:
        """Whether one of them at least is loaded and warm."""
        return any(worker.is_ready for worker in self.workers)

    def start(self, on_failure: Callable[[KdrtError], object]) -> None:
        """See `kdrt.serve.replica.Replicas`."""
        self._on_failure = on_failure
        for keeper in self._keepers:
            keeper.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_ready or self._failure is not None or self._is_closed
            )
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise ShuttingDownError(SHUTTING_DOWN)

    def close(self) -> None:
        """End all workers. Closing again does nothing."""
        self._is_closed = True
        self._tell()
        closing = [threading.Thread(target=keeper.close) for keeper in self._keepers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `kdrt.serve.replica.Replica`: by the worker with the fewest images outstanding. While
        none is ready, it waits for one."""
        worker = await self._chosen()
        makes, has_begun = (ask.model, worker.name), False
        try:
            async with aclosing(worker.run(ask)) as events:
                async for event in events:
                    if isinstance(event, Begun) and not has_begun:
                        has_begun = True
                        self._making[makes] += 1
                        self._last_maker[ask.model] = worker.name
                    yield event
        finally:
            self._making[makes] -= has_begun

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `kdrt.serve.replica.Replica`."""
        images: list[Image.Image] = await self._maker(model).look("preview", model, denoised)
        return images

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `kdrt.serve.replica.Replica`."""
        pixels: Tensor = await self._maker(model).look("decode", model, denoised)
        return pixels

    async def _chosen(self) -> AnyWorker:
        """The one with the fewest images; of several, the one that was asked longest ago."""
        while not (ready := [worker for worker in self.workers if worker.is_ready]):
            if self._is_closed:
                raise ShuttingDownError(SHUTTING_DOWN)
            await asyncio.sleep(_POLL)
        worker = min(ready, key=self._load)
        self._last_use[worker.name] = next(self._uses)
        return worker

    def _maker(self, model: str) -> AnyWorker:
        """One that makes images of a model, and so has it loaded; else the one that did last, or
        any.

        Raises:
            ReplicaLostError: none is ready.
        """
        ready = [worker for worker in self.workers if worker.is_ready]
        if not ready:
            raise ReplicaLostError("no worker is ready to look at an unfinished image")
        making = [worker for worker in ready if self._making[model, worker.name]]
        last = [worker for worker in ready if worker.name == self._last_maker.get(model)]
        return min(making or last or ready, key=self._load)

    def _load(self, worker: AnyWorker) -> tuple[int, int]:
        return worker.outstanding, self._last_use.get(worker.name, 0)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fail(self, failure: KdrtError) -> None:
        self._failure = failure
        self._tell()
        self._on_failure(failure)
