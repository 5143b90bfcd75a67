"""Replicas in tests: one that does what it is told, and services of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from kdrt.errors import KdrtError
from kdrt.pipeline.result import Result
from kdrt.serve.errors import ReplicaLostError
from kdrt.serve.replica import (
    Accepted,
    Ask,
    Begun,
    Done,
    Event,
    Failed,
    Replica,
    ServiceReplica,
    Stepped,
)
from kdrt.serve.service import ImageService


@dataclass
class FakeReplica:
    """Makes black images in no time, and keeps what was asked of it.

    Attributes:
        asked: the requests, in order.
        cancelled: how many of them were not waited for.
        go: until it is set, no image begins.
        finish: until it is set, no image that has begun is done.
        is_lost: whether it has ended; see :meth:`lose`.
    """

    asked: list[Ask] = field(default_factory=list)
    cancelled: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    is_lost: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()
        self.finish.set()

    def lose(self) -> None:
        """End it: what it has been asked for fails, and whatever it is asked from now on."""
        self.is_lost.set()

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `Replica`."""
        self.asked.append(ask)
        steps, is_over = ask.request.get("steps", 2), False
        try:
            if steps < 1:
                is_over = True
                yield Failed(KdrtError("there are no steps"))
                return
            await self._wait_for()
            yield Accepted(steps)
            await self._wait_for(self.go)
            for _ in range(ask.images):
                yield Begun(1)
            for index in range(steps if ask.watch else 0):
                for image in range(ask.images):
                    latents = torch.zeros(1, 4, 16, 16)
                    yield Stepped(image, index, 1.0, 0.5, latents, latents)
            await self._wait_for(self.finish)
            is_over = True
            yield Done(Result([Image.new("RGB", (64, 64))] * ask.images, [0] * ask.images))
        finally:
            self.cancelled += not (is_over or self.is_lost.is_set())

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `Replica`."""
        await self._wait_for()
        return [Image.new("RGB", (16, 16))]

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `Replica`."""
        await self._wait_for()
        return torch.zeros(1, 3, 64, 64)

    async def _wait_for(self, what: asyncio.Event | None = None) -> None:
        """Raises ReplicaLostError as soon as the replica has ended."""
        waits = [asyncio.ensure_future(self.is_lost.wait())]
        if what is not None:
            waits.append(asyncio.ensure_future(what.wait()))
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if self.is_lost.is_set():
            raise ReplicaLostError("the fake was told to end")


class FakeReplicas:
    """Several replicas of this process, of which the first that is left is asked.

    Args:
        replicas: started already.
    """

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.is_closed = False

    @property
    def is_ready(self) -> bool:
        """See `kdrt.serve.replica.Replicas`."""
        return bool(self.replicas)

    def start(self, on_failure: Callable[[KdrtError], object]) -> None:
        """See `kdrt.serve.replica.Replicas`."""

    def close(self) -> None:
        """See `kdrt.serve.replica.Replicas`."""
        self.is_closed = True

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `Replica`."""
        if not self.replicas:
            raise ReplicaLostError("no replica is left")
        replica = self.replicas[0]
        with self._left(replica):
            async with aclosing(replica.run(ask)) as events:
                async for event in events:
                    yield event

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `Replica`."""
        with self._left(self.replicas[0]) as replica:
            return await replica.preview(model, denoised)

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `Replica`."""
        with self._left(self.replicas[0]) as replica:
            return await replica.decode(model, denoised)

    @contextmanager
    def _left(self, replica: Replica) -> Iterator[Replica]:
        """Without the replica, if it is lost."""
        try:
            yield replica
        except ReplicaLostError:
            if replica in self.replicas:
                self.replicas.remove(replica)
            raise


def replicas_of(*services: ImageService) -> FakeReplicas:
    """Services of this process, which are loaded already, as replicas."""
    return FakeReplicas(*(ServiceReplica(service) for service in services))
