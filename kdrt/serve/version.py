"""A bundle as it was when it was opened: its pipeline and its batcher, once they are loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from kdrt.adapters.lora_file import LoraFile
from kdrt.adapters.lora_merge import Scale
from kdrt.batching.batcher import Batcher
from kdrt.batching.handle import Handle
from kdrt.batching.observer import Observer, Stage
from kdrt.bundle import Bundle
from kdrt.pipeline.loading import load
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.fields import Request
from kdrt.serve.errors import SHUTTING_DOWN, ShuttingDownError
from kdrt.serve.fingerprint import Fingerprint
from kdrt.serve.metrics import ModelMetrics
from kdrt.serve.queue import Place, WaitingQueue
from kdrt.serve.settings import ServiceSettings

_logger = logging.getLogger(__name__)

_WARMUP_STEPS = 2


class ModelVersion(Observer):
    """One bundle with its pipeline and its batcher, which may be loaded and unloaded many times.

    Attributes:
        bundle: the open bundle.
        loras: its registered LoRAs by name, read but not loaded yet.
        fingerprint: of its files before it was opened.

    Args:
        bundle: the open bundle.
        loras: by name.
        settings: of the service.
        queue: counts its images.
        metrics: of the model.
        fingerprint: of its files before it was opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        loras: Mapping[str, LoraFile],
        settings: ServiceSettings,
        queue: WaitingQueue,
        metrics: ModelMetrics,
        fingerprint: Fingerprint | None,
    ) -> None:
        self.bundle = bundle
        self.loras = loras
        self.fingerprint = fingerprint
        self._settings = settings
        self._queue = queue
        self._metrics = metrics
        self._lock = threading.Lock()
        self._places: dict[int, Place] = {}
        """By the number of the handle."""
        self._early: dict[int, int] = {}
        """Images that began before their place was known."""
        self._is_warm = False
        self._is_ended = False
        self._pipe: Pipeline | None = None
        self._batcher: Batcher | None = None

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.bundle.manifest.name

    @property
    def pipe(self) -> Pipeline:
        """The loaded pipeline."""
        assert self._pipe is not None
        return self._pipe

    def has_changed(self) -> bool:
        """Whether there is another bundle in its place now."""
        there = Fingerprint.of(self.bundle.path)
        return there is not None and there != self.fingerprint

    def load(self) -> None:
        """Load the engines and the LoRAs, and warm up. Takes as long as that takes, or until the
        step after it is ended. If it fails, nothing stays loaded.

        Raises:
            ShuttingDownError: it was ended meanwhile.
            KdrtError: see `kdrt.load`, `kdrt.Batcher` and its ``warmup``.
        """
        try:
            self._load()
        except BaseException:
            self.unload()
            raise
        self._is_warm = True

    def submit(
        self,
        request: Request,
        loras: Mapping[str, Scale] | None,
        place: Place,
        *,
        watch: bool,
        on_end: Callable[[], object],
    ) -> Handle[Any]:
        """Ask for images; everything is checked now. Takes some milliseconds, with an image to
        begin with more.

        Args:
            request: what to make.
            loras: of the registered ones, with their scales.
            place: in the queue; it leaves it when it is over, or was refused.
            watch: whether somebody goes over the steps.
            on_end: called when it is over, in a thread of the batcher; not where it was refused.

        Raises:
            KdrtError: see `kdrt.Batcher.submit`.
        """
        assert self._batcher is not None
        try:
            handle = self._batcher.submit(request, loras=loras, watch=watch)
        except BaseException:
            self._queue.leave(place, time.monotonic(), made=False)
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
            self._queue.leave(place, now, made=made)
            if made:
                self._metrics.made(place.images, now - place.arrived)
            on_end()

        handle.add_done_callback(over)
        return handle

    def preview(self, denoised: Tensor) -> list[Image.Image]:
        """Small images of ``denoised [B, C, h, w]``; see `ImageStep.preview`. It must be loaded."""
        return self.pipe.previewer(denoised.to(self.pipe.denoising.unet.device))

    def decode(self, denoised: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` of ``denoised [B, C, h, w]``; see `ImageStep.decode`. It must be
        loaded."""
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
        if self._queue.admit(place, images, now):
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

    def unload(self) -> None:
        """Cancel what is there, and free the engines. Where nothing is loaded it does nothing."""
        self._is_warm = False
        batcher, self._batcher = self._batcher, None
        pipe, self._pipe = self._pipe, None
        if batcher is not None:
            batcher.close(cancel=True)
        if pipe is not None:
            pipe.close()

    def end(self) -> None:
        """Unload for good: what is being loaded gives up."""
        self._is_ended = True
        batcher, pipe = self._batcher, self._pipe
        if batcher is not None:
            batcher.close(cancel=True)
        if pipe is not None:
            pipe.close()

    def _load(self) -> None:
        self._check_not_ended()
        settings = self._settings
        self._pipe = load(
            self.bundle,
            engine=settings.engine,
            threads=settings.threads,
            cuda_graph=settings.cuda_graph,
            fallback=settings.fallback,
        )
        self._check_not_ended()
        for name, file in self.loras.items():
            self._pipe.adapters.load_lora(file, name, scale=0.0)
        self._batcher = Batcher(
            self._pipe,
            max_rows=settings.max_rows,
            max_images=settings.max_images,
            observer=self,
        )
        self._check_not_ended()
        if settings.warmup is None or settings.warmup:
            started = time.perf_counter()
            self._batcher.warmup(settings.warmup, steps=_WARMUP_STEPS)
            _logger.info("%s is warm after %.1f s", self.name, time.perf_counter() - started)

    def _check_not_ended(self) -> None:
        if self._is_ended:
            raise ShuttingDownError(SHUTTING_DOWN)
