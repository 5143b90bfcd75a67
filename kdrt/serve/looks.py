"""Looks at unfinished images: at those that replicas make, and such as may fail."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from PIL import Image
from torch import Tensor

from kdrt.batching.handle import ImageStep
from kdrt.errors import CancelledError, KdrtError
from kdrt.serve.errors import DeadlineError, ReplicaLostError
from kdrt.serve.model import ServedModel
from kdrt.serve.replica import Replica, Stepped
from kdrt.vae.preview import Previewer

Seen = TypeVar("Seen")

_logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Replicas that one look may lose."""


async def looked(look: Callable[[], Seen]) -> Seen | None:
    """What a look at an unfinished image has come to; None where it failed, which is no reason to
    end the stream of an image that goes on.

    Args:
        look: called in a thread.
    """
    try:
        return await asyncio.to_thread(look)
    except KdrtError as error:
        _logger.warning("an unfinished image is not shown: %s", error)
        return None


class RemoteLooks:
    """How the steps of one request are looked at, in any thread but that of the event loop.

    Args:
        replica: looks, where this process cannot.
        model: that makes the request.
        seconds: from now on, after which no look is waited for.
    """

    def __init__(self, replica: Replica, model: ServedModel, seconds: float) -> None:
        self._replica = replica
        self._model = model.name
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._is_closed = False
        self._running: set[asyncio.Task[object] | None] = set()
        manifest = model.bundle.manifest
        self._previewer: Callable[[Tensor], list[Image.Image]] = (
            self._preview
            if "preview_decoder" in manifest.components
            else Previewer(manifest.latents)
        )

    def step(self, told: Stepped) -> ImageStep:
        """A step that a replica told of."""
        return ImageStep(
            told.index,
            told.sigma,
            told.sigma_next,
            told.latents,
            told.denoised,
            self._previewer,
            self._decode,
            told.image,
        )

    def close(self) -> None:
        """Nobody needs a look any more: those under way raise CancelledError, and all to come."""
        self._is_closed = True
        for task in self._running:
            if task is not None:
                task.cancel()

    def _preview(self, denoised: Tensor) -> list[Image.Image]:
        return self._waited_for(self._replica.preview, denoised)

    def _decode(self, denoised: Tensor) -> Tensor:
        return self._waited_for(self._replica.decode, denoised)

    def _waited_for(self, look: Callable[[str, Tensor], Awaitable[Seen]], denoised: Tensor) -> Seen:
        """What is seen.

        Raises:
            CancelledError: the request was cancelled, or has failed.
            DeadlineError: it took longer than the request may.
            ReplicaLostError: too many replicas have ended meanwhile.
            KdrtError: it failed.
        """
        looking = asyncio.run_coroutine_threadsafe(self._seen(look, denoised), self._loop)
        try:
            return looking.result()
        except concurrent.futures.CancelledError:
            raise CancelledError("the request was cancelled, so it is not looked at") from None

    async def _seen(self, look: Callable[[str, Tensor], Awaitable[Seen]], denoised: Tensor) -> Seen:
        if self._is_closed:
            raise CancelledError("the request was cancelled, so it is not looked at")
        task = asyncio.current_task()
        self._running.add(task)
        try:
            async with asyncio.timeout_at(self._end):
                for _ in range(_ATTEMPTS - 1):
                    # The replica that looks need not be the one that makes the request.
                    with contextlib.suppress(ReplicaLostError):
                        return await look(self._model, denoised)
                return await look(self._model, denoised)
        except TimeoutError:
            raise DeadlineError("an unfinished image was not seen in time") from None
        finally:
            self._running.discard(task)
