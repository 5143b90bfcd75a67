"""The replicas of a cluster, as the front sees them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from PIL import Image
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from torch import Tensor

from kdrt.errors import KdrtError
from kdrt.serve.errors import ReplicaLostError
from kdrt.serve.replica import Ask, Begun, Event, Stepped

_logger = logging.getLogger(__name__)

_MOST_LOSSES = 3
"""Replicas that one request may lose: it may be what ends them."""


class RayReplicas:
    """A `kdrt.serve.replica.Replicas` of a Ray deployment.

    Ray chooses: of two replicas at random the one with the shorter queue, and where a replica holds
    only some of the models, among those that hold this one. While there is none, requests wait for
    one.

    A replica that ends may take a request with it. Another one makes it again, also if its images
    had begun, as machines of a cluster come and go. Only if the steps are watched, and there was
    one, it fails: the client has seen steps that the next replica would take anew.

    Args:
        handle: of the deployment, a ``ray.serve.handle.DeploymentHandle``.
        by_model: whether a replica holds only some of the models.
    """

    def __init__(self, handle: Any, *, by_model: bool) -> None:
        self._handle = handle
        self._by_model = by_model
        self._is_started = False

    @property
    def is_ready(self) -> bool:
        """Whether there was one. If there is none at the moment, requests wait until Ray has
        started one, which they may be the reason for."""
        return self._is_started

    def start(self, on_failure: Callable[[KdrtError], object]) -> None:
        """Wait for the first; see `kdrt.serve.replica.Replicas`. ``on_failure`` is never called:
        Ray starts replicas for as long as the application is there.

        Raises:
            KdrtError: the replicas cannot be started.
        """
        try:
            self._handle.is_warm.remote().result()
        except (RayError, RayServeException) as error:
            raise KdrtError(f"Ray cannot start what makes the images: {error}") from error
        self._is_started = True

    def close(self) -> None:
        """Nothing: Ray ends them, with the application."""

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `kdrt.serve.replica.Replica`. Images that begin again are told of once."""
        told = losses = 0
        has_stepped = False
        while True:
            begun = 0
            try:
                async with aclosing(self._events(ask)) as events:
                    async for event in events:
                        if isinstance(event, Begun):
                            begun += event.images
                            event = Begun(begun - told)
                            if event.images <= 0:
                                continue
                            told = begun
                        has_stepped |= isinstance(event, Stepped)
                        yield event
                return
            except ReplicaLostError as error:
                losses += 1
                # The front itself sends it again where nothing has begun.
                if not told or has_stepped or losses == _MOST_LOSSES:
                    raise
                _logger.warning("another replica makes a request again: %s", error)

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `kdrt.serve.replica.Replica`."""
        images: list[Image.Image] = await self._answer("preview", model, denoised)
        return images

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `kdrt.serve.replica.Replica`."""
        pixels: Tensor = await self._answer("decode", model, denoised)
        return pixels

    async def _answer(self, method: str, model: str, denoised: Tensor) -> Any:
        try:
            return await getattr(self._chosen(model), method).remote(model, denoised)
        except (RayError, RayServeException) as error:
            raise _known(error) from error

    async def _events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """What one replica tells of a request."""
        response = self._chosen(ask.model, stream=True).run.remote(ask)
        try:
            async for event in response:
                yield event
        except (RayError, RayServeException) as error:
            raise _known(error) from error
        finally:
            response.cancel()

    def _chosen(self, model: str, *, stream: bool = False) -> Any:
        return self._handle.options(
            stream=stream, multiplexed_model_id=model if self._by_model else ""
        )


def _known(error: Exception) -> KdrtError:
    """A replica that fails is there; any other error of Ray's says that it is not.

    Ray's own text of a failure is the traceback of the replica, which is for the log only.
    """
    if not isinstance(error, RayTaskError):
        return ReplicaLostError(f"Ray has lost a replica: {type(error).__name__}")
    if isinstance(error.cause, KdrtError):
        return error.cause
    return KdrtError("what makes the images has failed; the log says why")
