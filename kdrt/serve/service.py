"""Images for whoever asks: several models, each with its queue. Nothing here knows of HTTP, so
that one process, several, and a cluster use the same."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdrt.adapters.lora_merge import Scale
from kdrt.batching.handle import Handle
from kdrt.common.home import home
from kdrt.common.validation import did_you_mean, excerpt
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.request.fields import Request
from kdrt.serve.errors import (
    SHUTTING_DOWN,
    NotReadyError,
    RequestError,
    ShuttingDownError,
    UnknownModelError,
)
from kdrt.serve.metrics import Metrics
from kdrt.serve.model import ServedModel
from kdrt.serve.reload import BundleWatcher
from kdrt.serve.residents import Residents
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.submission import Submission

_logger = logging.getLogger(__name__)

_POLL = 0.05
"""Seconds between two looks at whether everything is made."""


class ImageService:
    """Makes images with several models, in flight.

        service = ImageService([ModelSettings(bundle="demo")])
        service.load()
        submission = await service.submit({"prompt": "a red circle"})
        result = await submission.result()

    Attributes:
        models: by name; the first is the one for requests that name none.
        settings: how images are made.
        metrics: what happened.
        on_failure: called, in any thread, if after :meth:`load` no more images can ever be made.
        residents: which models are in memory.

    Args:
        models: the bundles; they are opened and their LoRAs are read now, so that what is wrong
            with them is told before anything is loaded.
        settings: how images are made.
        metrics: is told what happens; None makes one.

    Raises:
        BundleError: a bundle is missing or damaged.
        InvalidRequestError: no bundle, two of the same name, one that is beyond the memory, or a
            LoRA that does not fit.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        settings: ServiceSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings or ServiceSettings()
        self.metrics = metrics or Metrics()
        self.models: dict[str, ServedModel] = {}
        for each in models:
            model = ServedModel(each, self.settings, self.metrics)
            if model.name in self.models:
                raise InvalidRequestError(
                    f"two bundles are called {model.name!r}: export one of them with another --name"
                )
            self.models[model.name] = model
        if not self.models:
            raise InvalidRequestError("there is nothing to serve: name at least one bundle")
        self.residents = Residents(self.models.values(), self.settings, self.metrics.residency)
        self._watcher = BundleWatcher(self.models.values(), self.residents, self.metrics.residency)
        self.on_failure: Callable[[KdrtError], object] = _ignored
        self._is_loaded = False
        self._is_draining = False
        self._active: set[Submission] = set()
        self._submitting = 0

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self._is_loaded and not self._is_draining

    @property
    def is_loaded(self) -> bool:
        """Whether those models are loaded and warm that are at the start."""
        return self._is_loaded

    def load(self) -> None:
        """Load all models, or the first and those that the memory is enough for, one after the
        other, and warm them up. Any thread may do it.

        Raises:
            KdrtError: see `kdrt.load`.
        """
        self._start()
        if self.settings.reload is not None:
            self._watcher.start(self.settings.reload)
        self._is_loaded = True
        _logger.info("ready: %s", ", ".join(self.models))

    def _start(self) -> None:
        """Have models that make images."""
        self.residents.start()

    def has_loaded(self, model: ServedModel) -> bool:
        """Whether requests to a model need not wait until it is loaded."""
        return self.residents.is_loaded(model)

    def model(self, name: str | None = None) -> ServedModel:
        """The model of that name; of None, the first.

        Raises:
            UnknownModelError: there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModelError(
                f"no model {excerpt(name)} is served{did_you_mean(name, self.models)}; "
                f"served: {', '.join(self.models)}",
                "model",
            )
        return self.models[name]

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
        """Ask for images.

        Args:
            request: what to make.
            model: by which model; None is the first.
            loras: of those registered for it, with their scales.
            watch: whether the steps will be gone over.
            deadline: seconds that it may take; at most, and by default, what the settings say.
            on_begin: told of so many images that have begun, in another thread.

        Raises:
            NotReadyError: the models are being loaded.
            ShuttingDownError: the service ends.
            QueueFullError: too many images wait.
            RequestError: the model or a LoRA is unknown, or the request is beyond the limits.
            LoadFailedError: the model was not loaded, and cannot be.
            DeadlineError: it was not loaded in time.
            KdrtError: see `kdrt.Batcher.submit`.
        """
        served, images = self.checked(request, model, loras)
        ended: list[Submission] = []

        seconds = self._seconds(deadline)
        arrived = time.monotonic()
        self._submitting += 1
        try:
            turn = await self.residents.turn(served, images, seconds, on_begin)

            def submit() -> Handle[Any]:
                return turn.submit(
                    request,
                    loras or None,
                    watch=watch,
                    on_end=lambda: self._active.difference_update(ended),
                )

            if not watch:
                turn.was_read()
            try:
                # Resolving a request takes some milliseconds, and reading an image more.
                handle = await _uninterrupted(submit)
            except BaseException:
                turn.was_read()
                raise
        finally:
            self._submitting -= 1
        submission = Submission(
            handle,
            served.name,
            images,
            seconds,
            waited=time.monotonic() - arrived,
            on_read=turn.was_read,
        )
        self._active.add(submission)
        ended.append(submission)
        if handle.done():
            self._active.discard(submission)
        return submission

    def checked(
        self, request: Request, model: str | None, loras: Mapping[str, Scale] | None
    ) -> tuple[ServedModel, int]:
        """The model that is to make a request, and how many images it is about.

        Raises:
            KdrtError: it is refused without a look at the queue; see :meth:`submit`.
        """
        self.check_open()
        served = self.model(model)
        for name in loras or ():
            if name not in served.loras:
                raise RequestError(
                    f"no LoRA {excerpt(name)} is registered for {served.name}; "
                    f"registered: {', '.join(served.loras) or 'none'}",
                    "lora",
                )
        self.settings.limits.check_scales(loras)
        return served, self.settings.limits.check(request, served.bundle.manifest.latents)

    def _seconds(self, deadline: float | None) -> float:
        """How long a request may take that asks for this."""
        most = self.settings.deadline
        return most if deadline is None else min(deadline, most)

    def without_private(self, message: str) -> str:
        """A message for clients: without the places of files on this machine, which the advice to
        export or build something names."""
        places = {place for model in self.models.values() for place in model.places}
        for text in sorted({*places, str(home().absolute())}, key=len, reverse=True):
            message = message.replace(text, "…")
        return message

    def check_open(self) -> None:
        """Raises NotReadyError or ShuttingDownError: no request is accepted now."""
        if self._is_draining:
            raise ShuttingDownError(SHUTTING_DOWN)
        if not self._is_loaded:
            raise NotReadyError("the models are still being loaded; try again in a moment")

    async def drain(self, grace: float) -> None:
        """Accept nothing any more, and wait for what was accepted; after ``grace`` seconds cancel
        what is left of it."""
        self._is_draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        while (self._active or self._submitting) and loop.time() < end:
            await asyncio.sleep(_POLL)
        self.residents.refuse_waiting()
        left = list(self._active)
        if left:
            _logger.warning("%d requests are cancelled, as the server ends", len(left))
        for submission in left:
            submission.cancel(
                ShuttingDownError("the server is shutting down, and cancelled this request")
            )
        while self._active or self._submitting:
            await asyncio.sleep(_POLL)

    def close(self) -> None:
        """Cancel what is there, and free the models."""
        self._is_draining = True
        self.residents.close()
        self._watcher.close()


def _ignored(error: KdrtError) -> None:
    """Models of this process do not fail as a whole."""


async def _uninterrupted(submit: Callable[[], Handle[Any]]) -> Handle[Any]:
    """Run ``submit`` in a thread. If nobody waits for it any more, cancel what it submitted."""
    running = asyncio.get_running_loop().run_in_executor(None, submit)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:

        def undo(done: asyncio.Future[Handle[Any]]) -> None:
            if not done.cancelled() and done.exception() is None:
                done.result().cancel()

        running.add_done_callback(undo)
        raise
