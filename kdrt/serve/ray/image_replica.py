"""What a replica runs: a service for each model that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from kdrt.serve.log import request_id
from kdrt.serve.replica import Ask, Event, Failed, ServiceReplica, portable_error
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings

_POLL = 0.05
"""Seconds between two looks at whether a model is still used."""


class LoadedModel:
    """One loaded model, and how many requests use it.

    Args:
        service: with this model, loaded.
    """

    def __init__(self, service: ImageService) -> None:
        self.replica = ServiceReplica(service)
        self.users = 0
        self._service = service
        # Ray awaits what has this name before it loads another model in the place of this one.
        # As a method of the class it would be Python's, which awaits nothing.
        self.__del__ = self.free

    async def free(self) -> None:
        """Free the engines, once nobody uses the model any more."""
        while self.users:
            await asyncio.sleep(_POLL)
        await asyncio.to_thread(self._service.close)


ModelLoader: TypeAlias = Callable[[str], Awaitable[LoadedModel]]


class ImageReplica:
    """The engines, behind the three calls of `kdrt.serve.replica.Replica`.

    Each model has a service of its own, so that Ray can put one in the place of another: the router
    must know which replica holds which model, and Ray knows that only of models that it has loaded.

    Args:
        models: by the name that clients use.
        settings: of each service.
        keep: makes a function remember the models that it has loaded, as
            ``ray.serve.multiplexed`` does.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        settings: ServiceSettings,
        keep: Callable[[ModelLoader], ModelLoader],
    ) -> None:
        async def load(name: str) -> LoadedModel:
            service = ImageService([models[name]], settings)
            await asyncio.to_thread(service.load)
            return LoadedModel(service)

        self._load = keep(load)

    async def warm_up(self, *names: str) -> None:
        """Load these models, and warm them up.

        Raises:
            KdrtError: see `ImageService.load`.
        """
        for name in names:
            await self._load(name)

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `kdrt.serve.replica.Replica`."""
        request_id.set(ask.request_id)
        try:
            async with self._used(ask.model) as replica, aclosing(replica.run(ask)) as events:
                async for event in events:
                    yield event
        except Exception as error:  # the model cannot be loaded
            yield Failed(portable_error(error))

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `kdrt.serve.replica.Replica`."""
        async with self._used(model) as replica:
            return await replica.preview(model, denoised)

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `kdrt.serve.replica.Replica`."""
        async with self._used(model) as replica:
            return await replica.decode(model, denoised)

    @asynccontextmanager
    async def _used(self, name: str) -> AsyncIterator[ServiceReplica]:
        """A model that stays loaded within the block."""
        model = await self._load(name)
        model.users += 1
        try:
            yield model.replica
        finally:
            model.users -= 1
