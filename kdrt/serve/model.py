"""A bundle that is served."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from kdrt.adapters.lora import Scale
from kdrt.adapters.lora_file import LoraFile
from kdrt.batching.batcher import Batcher
from kdrt.batching.handle import Handle
from kdrt.batching.observer import Observer, Stage
from kdrt.bundle import Bundle
from kdrt.pipeline.loading import load
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.fields import Request
from kdrt.serve.errors import ShuttingDownError
from kdrt.serve.metrics import Metrics
from kdrt.serve.queue import Place, WaitingQueue
from kdrt.serve.settings import ServiceSettings

_logger = logging.getLogger(__name__)

_WARMUP_STEPS = 2


class ServedModel(Observer):
    """One bundle with its pipeline, its batcher and its queue.

    Attributes:
        name: what clients call it.
        bundle: the open bundle.
        loras: the names of its registered LoRAs.
        queue: counts its images.

    Args:
        bundle: the open bundle.
        loras: by name, read but not loaded yet.
        settings: of the service.
        metrics: of the service.
    """

    def __init__(
        self,
        bundle: Bundle,
        loras: Mapping[str, LoraFile],
        settings: ServiceSettings,
        metrics: Metrics,
    ) -> None:
        self.name = bundle.manifest.name
        self.bundle = bundle
        self.loras = tuple(loras)
        self.queue = WaitingQueue(settings.max_waiting)
        self._files = loras
        self._settings = settings
        self._metrics = metrics.model(
            self.name, lambda: self.queue.waiting, lambda: self.queue.running
        )
        self._lock = threading.Lock()
        self._places: dict[int, Place] = {}
        """By the number of the handle."""
        self._early: dict[int, int] = {}
        """Images that began before their place was known."""
        self._is_warm = False
        self._is_closed = False
        self._pipe: Pipeline | None = None
        self._batcher: Batcher | None = None

    @property
    def places(self) -> set[str]:
        """Where its files are, and what it was exported from, which clients need not know."""
        source = self.bundle.manifest.source
        files = {str(file.path) for file in self._files.values()}
        return {str(self.bundle.path), *files, *([source] if "/" in source else [])}

    @property
    def pipe(self) -> Pipeline:
        """The loaded pipeline."""
        assert self._pipe is not None
        return self._pipe

    @property
    def may_show_unfinished(self) -> bool:
        """Whether unfinished images may be shown: a safety checker looks at finished ones only."""
        return "safety_checker" not in self.bundle.manifest.components

    @property
    def has_previews(self) -> bool:
        """Whether there are small previews of unfinished images, which may be shown."""
        manifest = self.bundle.manifest
        has_decoder = "preview_decoder" in manifest.components
        return self.may_show_unfinished and (manifest.latents.preview is not None or has_decoder)

    def load(self) -> None:
        """Load the engines and the LoRAs, and warm up. Takes as long as that takes, or until the
        step after it is closed.

        Raises:
            ShuttingDownError: it was closed meanwhile.
            KdrtError: see `kdrt.load`, `kdrt.Batcher` and its ``warmup``.
        """
        self._check_open()
        settings = self._settings
        self._pipe = load(
            self.bundle,
            engine=settings.engine,
            threads=settings.threads,
            cuda_graph=settings.cuda_graph,
            fallback=settings.fallback,
        )
        self._check_open()
        for name, file in self._files.items():
            self._pipe.adapters.load_lora(file, name, scale=0.0)
        self._batcher = Batcher(
            self._pipe,
            max_rows=settings.max_rows,
            max_images=settings.max_images,
            observer=self,
        )
        self._check_open()
        if settings.warmup is None or settings.warmup:
            started = time.perf_counter()
            self._batcher.warmup(settings.warmup, steps=_WARMUP_STEPS)
            _logger.info("%s is warm after %.1f s", self.name, time.perf_counter() - started)
        self._is_warm = True

    def submit(
        self,
        request: Request,
        loras: Mapping[str, Scale] | None,
        *,
        images: int,
        watch: bool,
        on_end: Callable[[], object],
        on_begin: Callable[[int], object] | None = None,
    ) -> Handle[Any]:
        """Ask for images; everything is checked now. Takes some milliseconds, with an image to
        begin with more.

        Args:
            request: what to make.
            loras: of the registered ones, with their scales.
            images: how many it is about.
            watch: whether somebody goes over the steps.
            on_end: called when it is over, in a thread of the batcher.
            on_begin: told of so many images that have begun, in a thread of the batcher.

        Raises:
            QueueFullError: too many wait.
            KdrtError: see `kdrt.Batcher.submit`.
        """
        assert self._batcher is not None
        place = self.queue.enter(images, time.monotonic(), on_begin)
        try:
            handle = self._batcher.submit(request, loras=loras, watch=watch)
        except BaseException:
            self.queue.leave(place, time.monotonic(), made=False)
            raise
        with self._lock:
            self._places[handle.number] = place
            early = self._early.pop(handle.number, 0)
        if early:
            self.admitted(handle, early)

        def over(handle: Handle[Any]) -> None:
            with self._lock:
                del self._places[handle.number]
            now, made = time.monotonic(), handle.exception() is None
            self.queue.leave(place, now, made=made)
            if made:
                self._metrics.made(place.images, now - place.arrived)
            on_end()

        handle.add_done_callback(over)
        return handle

    def preview(self, denoised: Tensor) -> list[Image.Image]:
        """Small images of ``denoised [B, C, h, w]``; see `ImageStep.preview`."""
        return self.pipe.previewer(denoised.to(self.pipe.denoising.unet.device))

    def decode(self, denoised: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` of ``denoised [B, C, h, w]``; see `ImageStep.decode`."""
        assert self._batcher is not None
        return self._batcher.decode(denoised.to(self.pipe.denoising.unet.device))

    def admitted(self, handle: Handle[Any], images: int) -> None:
        """See `kdrt.batching.observer.Observer`."""
        if not self._is_warm:
            return
        with self._lock:
            place = self._places.get(handle.number)
            if place is None:
                self._early[handle.number] = self._early.get(handle.number, 0) + images
                return
        now = time.monotonic()
        if self.queue.admit(place, images, now):
            self._metrics.begun(now - place.arrived)
        if place.on_begin is not None:
            place.on_begin(images)

    def ticked(self, images: int, rows: int, seconds: float) -> None:
        """See `kdrt.batching.observer.Observer`."""
        if self._is_warm:
            self._metrics.ticked(images, rows, seconds)

    def took(self, stage: Stage, seconds: float) -> None:
        """See `kdrt.batching.observer.Observer`."""
        if self._is_warm:
            self._metrics.took(stage, seconds)

    def close(self) -> None:
        """Cancel what is there, and free the engines. Closing again does nothing, but for what was
        loaded meanwhile."""
        self._is_closed = True
        if self._batcher is not None:
            self._batcher.close(cancel=True)
        if self._pipe is not None:
            self._pipe.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ShuttingDownError("the server is shutting down")
