"""The application on Ray Serve: ``kdrt.serve.ray.app:build`` is its import path.

Two deployments: ``front``, which has the HTTP interfaces, the queue and its bound, and ``images``,
which has the engines. There is one front: the bound of the queue, and what a client may interrupt,
are known in one place. It holds no engine, and Ray starts it anew if it ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray.serve
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from kdrt.bundle import open_bundle
from kdrt.errors import KdrtError
from kdrt.serve.app import create_app
from kdrt.serve.log import start_logging
from kdrt.serve.ray.figures import FrontMetrics
from kdrt.serve.ray.image_replica import ImageReplica
from kdrt.serve.ray.replicas import RayReplicas
from kdrt.serve.ray.settings import Application, application_of
from kdrt.serve.remote import RemoteService, replica_settings
from kdrt.serve.replica import Ask, Event

_logger = logging.getLogger(__name__)

_MOST_REQUESTS = 10_000
"""That the front has at a time: its queue refuses what is too much, in the words of each
interface."""


def build(args: Mapping[str, Any]) -> ray.serve.Application:
    """The application from the arguments in a cluster's file; see
    `kdrt.serve.ray.settings.application_of`.

    Raises:
        InvalidRequestError: an argument is unknown, or not what it should be.
    """
    return bound(application_of(args))


def bound(application: Application) -> ray.serve.Application:
    """The deployments of an application, for ``ray.serve.run``."""
    wanted = application.ray
    rows = wanted.rows(application.service.max_rows)
    number: dict[str, Any] = {"num_replicas": wanted.min_replicas}
    if wanted.max_replicas != wanted.min_replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": wanted.min_replicas,
                "max_replicas": wanted.max_replicas,
                # An image with guidance takes two rows: with so many an evaluation is full.
                "target_ongoing_requests": max(1, rows // 2),
            }
        }
    images = ray.serve.deployment(
        Images,
        name="images",
        # What an evaluation has room for, and as many that can begin at once when some are done.
        # The others wait in front of all replicas, so that the next one that is free takes them.
        max_ongoing_requests=2 * rows,
        ray_actor_options={"num_gpus": wanted.num_gpus, "num_cpus": wanted.num_cpus},
        graceful_shutdown_timeout_s=application.server.grace,
        **number,
    )
    front = ray.serve.deployment(
        ray.serve.ingress()(Front),
        name="front",
        max_ongoing_requests=_MOST_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=application.server.grace,
    )
    return front.bind(application, images.bind(application))


class Images:
    """A replica as Ray starts it; see `ImageReplica`."""

    async def __init__(self, application: Application) -> None:  # type: ignore[misc]
        start_logging(application.log)
        models = {open_bundle(each.bundle).manifest.name: each for each in application.models}
        most = application.ray.models_per_replica or len(models)
        settings = replica_settings(application.service)
        threads = application.ray.threads(settings.threads)
        self._replica = ImageReplica(
            models,
            replace(settings, threads=threads),
            ray.serve.multiplexed(max_num_models_per_replica=most),
        )
        await self._replica.warm_up(*list(models)[:most])

    async def is_warm(self) -> bool:
        """Always: Ray calls nothing before the replica is made."""
        return True

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `ImageReplica`."""
        async with aclosing(self._replica.run(ask)) as events:
            async for event in events:
                yield event

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `ImageReplica`."""
        return await self._replica.preview(model, denoised)

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `ImageReplica`."""
        return await self._replica.decode(model, denoised)


class Front:
    """The interfaces, in front of all replicas.

    Args:
        application: what to serve.
        images: the handle of the replicas.
    """

    def __init__(self, application: Application, images: Any) -> None:
        start_logging(application.log)
        most = application.ray.models_per_replica or len(application.models)
        replicas = RayReplicas(images, by_model=most < len(application.models))
        self._service = RemoteService(
            application.models, application.service, replicas, FrontMetrics()
        )
        self._settings = application.server
        self._failure: Exception | None = None
        # It answers while they are loaded: that it is not ready yet.
        threading.Thread(target=self._load, name="kdrt-load", daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray calls."""
        return create_app(self._service, self._settings)

    async def drain(self) -> None:
        """Answer new requests with 503, and return when what runs is finished, or cancelled after
        the grace time. To be called before Ray deletes the application, which takes the route away
        at once: clients that are to ask again would be told that there is no such path."""
        await self._service.drain(self._settings.grace)

    def check_health(self) -> None:
        """What Ray calls: a front that will never be ready is to be started anew."""
        if self._failure is not None:
            raise self._failure

    def _load(self) -> None:
        try:
            self._service.load()
        except Exception as error:
            is_foreseen = isinstance(error, KdrtError)
            _logger.error("%s", error, exc_info=not is_foreseen)
            self._failure = error
