"""Images for whoever asks: several models, each with its queue. Nothing here knows of HTTP, so
that one process, several, and a cluster use the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdrt.adapters.lora import LoraStack, Scale
from kdrt.adapters.lora_file import LoraFile, read_lora
from kdrt.batching.handle import Handle
from kdrt.bundle import Bundle, open_bundle
from kdrt.common.home import home
from kdrt.common.validation import did_you_mean
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.request.fields import Request
from kdrt.serve.errors import (
    NotReadyError,
    RequestError,
    ShuttingDownError,
    UnknownModelError,
)
from kdrt.serve.metrics import Metrics
from kdrt.serve.model import ServedModel
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

    Args:
        models: the bundles; they are opened and their LoRAs are read now, so that what is wrong
            with them is told before anything is loaded.
        settings: how images are made.
        metrics: is told what happens; None makes one.

    Raises:
        BundleError: a bundle is missing or damaged.
        InvalidRequestError: no bundle, two of the same name, or a LoRA that does not fit.
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
            bundle = open_bundle(each.bundle)
            loras = _read_loras(bundle, each)
            name = bundle.manifest.name
            if name in self.models:
                raise InvalidRequestError(
                    f"two bundles are called {name!r}: export one of them with another --name"
                )
            self.models[name] = ServedModel(bundle, loras, self.settings, self.metrics)
        if not self.models:
            raise InvalidRequestError("there is nothing to serve: name at least one bundle")
        places = {place for model in self.models.values() for place in model.places}
        self._private = sorted({*places, str(home().absolute())}, key=len, reverse=True)
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
        """Whether all models are loaded and warm."""
        return self._is_loaded

    def load(self) -> None:
        """Load all models, one after the other, and warm them up. Any thread may do it.

        Raises:
            KdrtError: see `kdrt.load`.
        """
        for model in self.models.values():
            model.load()
        self._is_loaded = True
        _logger.info("ready: %s", ", ".join(self.models))

    def model(self, name: str | None = None) -> ServedModel:
        """The model of that name; of None, the first.

        Raises:
            UnknownModelError: there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModelError(
                f"no model {name!r} is served{did_you_mean(name, self.models)}; "
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
            KdrtError: see `kdrt.Batcher.submit`.
        """
        served, images = self.checked(request, model, loras)
        ended: list[Submission] = []

        def submit() -> Handle[Any]:
            return served.submit(
                request,
                loras or None,
                images=images,
                watch=watch,
                on_end=lambda: self._active.difference_update(ended),
                on_begin=on_begin,
            )

        self._submitting += 1
        try:
            # Resolving a request takes some milliseconds, and reading an image more.
            handle = await _uninterrupted(submit)
        finally:
            self._submitting -= 1
        seconds = self.settings.deadline
        submission = Submission(
            handle, served.name, images, seconds if deadline is None else min(deadline, seconds)
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
                    f"no LoRA {name!r} is registered for {served.name}; "
                    f"registered: {', '.join(served.loras) or 'none'}",
                    "lora",
                )
        return served, self.settings.limits.check(request, served.bundle.manifest.latents)

    def without_private(self, message: str) -> str:
        """A message for clients: without the places of files on this machine, which the advice to
        export or build something names."""
        for text in self._private:
            message = message.replace(text, "…")
        return message

    def check_open(self) -> None:
        """Raises NotReadyError or ShuttingDownError: no request is accepted now."""
        if self._is_draining:
            raise ShuttingDownError("the server is shutting down; ask another, or try again later")
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
        for model in self.models.values():
            model.close()


def _ignored(error: KdrtError) -> None:
    """Models of this process do not fail as a whole."""


def _read_loras(bundle: Bundle, settings: ModelSettings) -> dict[str, LoraFile]:
    """The registered LoRAs of a bundle, which fit it."""
    stack = LoraStack(bundle)
    loras = {name: read_lora(path) for name, path in settings.loras.items()}
    for file in loras.values():
        stack.check(file, 1.0, strict=False)
    return loras


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
