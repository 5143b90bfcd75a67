"""A service that is somewhere else: what is asked of it, and what comes back.

A request goes to a replica as an `Ask`, and comes back as events: `Accepted`, then for each of its
images `Begun` and, where it is watched, `Stepped`, and in the end `Done`. At any point `Failed` may
be the last event instead. All of them can be pickled, and hold nothing of the process that they
come from.

What is wrong with a request is an event. An *exception* of a replica says that there is no replica
any more: that is always a `ReplicaLostError`. Another replica can then make the request, if none of
its images had begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from PIL import Image
from torch import Tensor

from kdrt.adapters.lora_merge import Scale
from kdrt.batching.handle import ImageStep
from kdrt.errors import KdrtError
from kdrt.pipeline.result import Result
from kdrt.request.fields import Request
from kdrt.serve.errors import ClientGoneError
from kdrt.serve.service import ImageService
from kdrt.serve.submission import Submission
from kdrt.serve.version import ModelVersion

Seen = TypeVar("Seen")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request on its way to a replica; see `ImageService.submit`.

    Attributes:
        request: what to make.
        model: the name of the model.
        images: how many it is about, for whoever chooses a replica.
        loras: of those registered for the model, with their scales.
        watch: whether the steps are wanted.
        deadline: seconds that it may take.
        request_id: of the request that the client made, for the log.
    """

    request: Request
    model: str
    images: int
    loras: Mapping[str, Scale] | None = None
    watch: bool = False
    deadline: float
    request_id: str = ""


@dataclass(frozen=True)
class Accepted:
    """It is in the replica's queue.

    Attributes:
        steps: of each image.
    """

    steps: int


@dataclass(frozen=True)
class Begun:
    """So many more of its images are on their way."""

    images: int


@dataclass(frozen=True)
class Stepped:
    """A completed step of one image; see `ImageStep`. The tensors are on the CPU."""

    image: int
    index: int
    sigma: float
    sigma_next: float
    latents: Tensor
    denoised: Tensor


@dataclass(frozen=True)
class Done:
    """The images. A tensor is on the CPU."""

    result: Result[Any]


@dataclass(frozen=True)
class Failed:
    """It was refused, or has failed, or was cancelled in the replica."""

    error: Exception


Event: TypeAlias = Accepted | Begun | Stepped | Done | Failed


class Replica(Protocol):
    """Makes images somewhere else, or knows others that do and chooses one for each request."""

    def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of a request, up to `Done` or `Failed`. Closing the generator, or cancelling
        whoever waits for the next event, cancels the request.

        Raises:
            ReplicaLostError: the replica has ended.
        """
        ...

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `ImageStep.preview`, for ``denoised [1, C, h, w]`` of a step. Any replica can do it
        that has the model loaded; none is loaded for it.

        Raises:
            ReplicaLostError: the replica has ended.
            PipelineClosedError: the model is not loaded there.
            KdrtError: it failed.
        """
        ...

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """The pixels ``[1, 3, H, W]`` that the VAE makes of a step; see `ImageStep.decode`.

        Raises:
            ReplicaLostError: the replica has ended.
            PipelineClosedError: the model is not loaded there.
            KdrtError: it failed.
        """
        ...


class Replicas(Replica, Protocol):
    """All the replicas of a service, which come and go."""

    @property
    def is_ready(self) -> bool:
        """Whether one of them at least is loaded and warm."""
        ...

    def start(self, on_failure: Callable[[KdrtError], object]) -> None:
        """Return when the first of them is ready. Any thread may do it.

        Args:
            on_failure: called, in any thread, if later none of them can be had any more.

        Raises:
            ShuttingDownError: they were closed meanwhile.
            KdrtError: none can be had.
        """
        ...

    def close(self) -> None:
        """End all of them, with whatever they are making."""
        ...


class ServiceReplica:
    """A service as a replica, for the event loop that uses it.

    Args:
        service: makes the images; who made it loads and closes it.
    """

    def __init__(self, service: ImageService) -> None:
        self._service = service

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `Replica`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def begun(images: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, Begun(images))

        try:
            submission = await self._service.submit(
                ask.request,
                model=ask.model,
                loras=ask.loras,
                watch=ask.watch,
                deadline=ask.deadline,
                on_begin=begun,
            )
        except Exception as error:
            yield Failed(portable_error(error))
            return
        following = asyncio.ensure_future(_follow(submission, events, watch=ask.watch))
        # Not before: a thread may still copy the newest step.
        following.add_done_callback(lambda _: submission.was_read())
        try:
            yield Accepted(submission.steps)
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Done | Failed):
                    return
        finally:
            submission.cancel(ClientGoneError("nobody waits for this request any more"))

    async def preview(self, model: str, denoised: Tensor) -> list[Image.Image]:
        """See `Replica`."""
        return await self._seen(model, lambda version: version.preview(denoised))

    async def decode(self, model: str, denoised: Tensor) -> Tensor:
        """See `Replica`."""
        return await self._seen(model, lambda version: version.decode(denoised).cpu())

    async def _seen(self, model: str, look: Callable[[ModelVersion], Seen]) -> Seen:
        def seen() -> Seen:
            # In the thread, which goes on where nobody waits for it any more.
            with self._service.residents.shared(self._service.model(model)) as version:
                return look(version)

        return await asyncio.to_thread(seen)


async def _follow(submission: Submission, events: asyncio.Queue[Event], *, watch: bool) -> None:
    """Put what happens to a submission into ``events``."""
    try:
        if watch:
            async for step in submission:
                events.put_nowait(await asyncio.to_thread(_stepped, step))
        result = await submission.result()
        events.put_nowait(Done(await asyncio.to_thread(_portable_result, result)))
    except Exception as error:
        events.put_nowait(Failed(portable_error(error)))


def _stepped(step: ImageStep) -> Stepped:
    return Stepped(
        step.image,
        step.index,
        step.sigma,
        step.sigma_next,
        step.latents.cpu(),
        step.denoised.cpu(),
    )


def _portable_result(result: Result[Any]) -> Result[Any]:
    """The same without what its infotexts are made from."""
    images = result.images
    return replace(
        result,
        images=images.cpu() if isinstance(images, Tensor) else images,
        make_infotexts=partial(list, result.infotexts),
    )


def portable_error(error: Exception) -> Exception:
    """An error that can be pickled. One of kdrt's own is the same there; of others the text is
    kept, with the traceback as a note for the log."""
    if isinstance(error, KdrtError):
        with contextlib.suppress(Exception):
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
        return KdrtError(str(error))
    told = RuntimeError(f"{type(error).__name__}: {error}")
    told.add_note("".join(traceback.format_exception(error)))
    return told
