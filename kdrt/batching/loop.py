"""The thread that owns the engines: between two ticks it takes requests in and lets images go.

While there is work it is in the middle of one call of the pipeline, so direct calls wait. What
fails fails alone: a request that cannot be prepared, a callback that raises, an image that is not
finite. Only an error of a tick itself, which ran all of its images at once, ends all of them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

from torch import Tensor

from kdrt.batching.alone import next_step, of_one_image
from kdrt.batching.decoding import Decoding
from kdrt.batching.handle import ImageStep
from kdrt.batching.image_class import OWN, ImageClass, Loras
from kdrt.batching.messages import Arrived, Cancelled, Close, Decoded, Message
from kdrt.batching.observer import Observer
from kdrt.batching.order import ImageId, Order
from kdrt.batching.pace import Pace
from kdrt.batching.passes import entries_of, prepare_first, prepare_second
from kdrt.batching.scheduler import Count, Limits, Scheduler
from kdrt.batching.shared import SharedImages
from kdrt.common.memory import as_told
from kdrt.errors import CancelledError, OutOfMemoryError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.pipeline.result import Result
from kdrt.sampling import Step

_logger = logging.getLogger(__name__)

_CANCELLED = "this request was cancelled"


class BatchingLoop:
    """Makes the requests of a pipeline together.

    Args:
        pipe: the pipeline.
        limits: of every class.
        observer: is told what happens.
    """

    def __init__(self, pipe: Pipeline, limits: Limits, observer: Observer) -> None:
        self._pipe = pipe
        self._observer = observer
        self._rows = self._most_rows = limits.rows
        self._scheduler = Scheduler(limits=lambda klass: limits)
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._orders: dict[Order, None] = {}
        self._shared = SharedImages(pipe.denoising, limits.images)
        self._decoding = Decoding(pipe)
        self._sampled: deque[tuple[Order, Tensor]] = deque()
        self._being_decoded = 0
        self._loras: Hashable = OWN
        self._group: Hashable = None
        self._own_loras: Loras = {}
        self._pace = Pace(pipe.denoising.unet.device)
        self._counts = Count(0, 0)
        self._submitted = self._arrived = 0
        self._is_closing = False
        self._has_ended = threading.Event()
        self._process = os.getpid()

    # What other threads call.

    def submit(self, order: Order) -> None:
        """Take an order in; by one thread at a time."""
        self._submitted += order.images
        self._messages.put(Arrived(order))

    def cancel(self, order: Order) -> None:
        self._messages.put(Cancelled(order))

    def close(self, *, cancel_with: str | None) -> None:
        """Take no more, and make what is there; or end it with a CancelledError that says this."""
        self._messages.put(Close(cancel_with))

    def wait(self) -> None:
        """Wait until :meth:`run` has done everything; in a process that was forked, for nothing.

        `Thread.join` would not do: before Python 3.13 one that Ctrl-C breaks off takes the thread
        for ended, and the next one returns at once.
        """
        if os.getpid() == self._process:
            self._has_ended.wait()

    def counts(self) -> Count:
        """How many images wait and are in flight."""
        waiting, in_flight = self._counts
        return Count(waiting + self._submitted - self._arrived, in_flight)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Decoding.decode`."""
        return self._decoding.decode(latents)

    # The thread.

    def run(self) -> None:
        """Work until the loop is closed and everything is made."""
        try:
            while not (self._is_closing and not self._orders):
                self._take(self._messages.get())
                if not self._orders:
                    continue
                try:
                    with self._pipe.calls.exclusive(), self._pipe.cuda_stream.active():
                        self._work()
                except BaseException as error:
                    if isinstance(error, Exception):
                        _logger.info("all requests end: %s", error)
                    self._fail_all(error)
        finally:
            self._decoding.close()
            self._has_ended.set()

    def _work(self) -> None:
        """Make all that is there, and what comes meanwhile."""
        self._group = None  # the UNet may be another one by now
        if self._loras == OWN:  # or they could not be put back the last time
            loaded = self._pipe.adapters.loras.values()
            self._own_loras = {lora.name: lora.scale for lora in loaded if lora.is_active}
        try:
            while self._orders:
                self._turn()
        finally:
            self._use_loras(OWN, self._own_loras)

    def _turn(self) -> None:
        self._pipe.calls.check_cancelled()
        while not self._messages.empty():
            self._take(self._messages.get())
        self._decode()
        tick = self._scheduler.next_tick()
        if tick is None:
            if self._being_decoded:
                self._take(self._messages.get())
            return
        if tick.admitted:
            self._count()
        klass = cast(ImageClass, tick.klass)
        images = cast(Sequence[ImageId], tick.images)
        if not self._activated(klass, images):
            return
        if klass.shape is None:
            self._step_alone(images[0])
        else:
            self._tick(klass, images, cast(Sequence[ImageId], tick.admitted))

    def _take(self, message: Message) -> None:
        match message:
            case Arrived(order):
                self._arrive(order)
            case Cancelled(order):
                self._fail(order, CancelledError(_CANCELLED))
            case Decoded(order, result):
                self._being_decoded -= 1
                self._decoded(order, result)
            case Close(cancel_with):
                self._is_closing = True
                if cancel_with is not None:
                    self._fail_all(CancelledError(cancel_with))

    def _arrive(self, order: Order) -> None:
        self._arrived += order.images
        if order.is_over:  # cancelled before this thread saw it
            return
        self._orders[order] = None
        try:
            self._enter(order)
        except Exception as error:
            self._fail(order, error)

    def _enter(self, order: Order) -> None:
        """The images of an order, in this pass of it, wait for a tick."""
        for entry in entries_of(order, self._pipe):
            self._scheduler.add(entry)
        if self._rows < self._most_rows:
            self._scheduler.limit_rows(self._rows)
        self._count()

    def _count(self) -> None:
        """Note how many images there are: other threads cannot look into the scheduler."""
        counts = self._scheduler.counts().values()
        self._counts = Count(sum(c.waiting for c in counts), sum(c.in_flight for c in counts))

    def _activated(self, klass: ImageClass, images: Sequence[ImageId]) -> bool:
        """Whether the networks of a class are in use now; if they cannot be, its images fail."""
        if klass.group == self._group:
            return True
        order = images[0].order
        self._group = None
        try:
            self._use_loras(klass.loras, self._own_loras if order.loras is None else order.loras)
            self._pipe.adapters.use_unet(klass.unet_features)
            self._shared.release_others()
            self._group = klass.group
        except Exception as error:
            for each in [o for o in self._orders if o.klass.group == klass.group]:
                self._fail(each, error)
            return False
        return True

    def _use_loras(self, name: Hashable, loras: Loras) -> None:
        if name != self._loras:
            self._pipe.adapters.set_loras(loras)
            self._loras = name

    # Images that share.

    def _tick(
        self, klass: ImageClass, images: Sequence[ImageId], admitted: Sequence[ImageId]
    ) -> None:
        for image in admitted:
            if not image.order.is_over:
                self._admit(image)
        running = [image for image in images if not image.order.is_over]
        if not running:
            return
        started = time.perf_counter()
        try:
            ticked = self._shared.tick(running)
        except Exception as error:
            self._tick_failed(klass, running, error)
            return
        self._pace.enqueued()
        self._observer.ticked(len(running), ticked.rows, time.perf_counter() - started)
        for image, step in zip(running, ticked.steps, strict=True):
            if step is not None and image.order.is_watched:
                self._tell(image, step)
            if ticked.finished and not image.order.is_over:
                self._let_go(image)

    def _let_go(self, image: ImageId) -> None:
        """An image leaves if it is finished."""
        try:
            latents = self._shared.finished(image)
            if latents is not None:
                image.order.sampled(image.place, latents)
                self._leave(image)
                self._has_sampled(image.order)
        except Exception as error:  # there may be no memory for a copy of its latents
            self._fail(image.order, as_told(error))

    def _admit(self, image: ImageId) -> None:
        try:
            self._prepare(image.order)
            self._shared.admit(image)
        except Exception as error:
            self._fail(image.order, as_told(error))
        else:
            if not image.order.taken:
                self._observer.admitted(image.order.handle, 1)

    def _prepare(self, order: Order) -> None:
        if order.run is None:
            with self._observer.timing("encode"):
                prepare_first(order, self._pipe)

    def _tick_failed(self, klass: ImageClass, images: Sequence[ImageId], error: Exception) -> None:
        """Go on with fewer rows where memory ran out; otherwise nobody knows whose fault it is."""
        told = as_told(error)
        if isinstance(told, OutOfMemoryError) and len(images) > 1:
            self._shared.release(klass)
            self._rows = max(1, self._rows // 2)
            self._scheduler.limit_rows(self._rows)
            _logger.warning("memory ran out; going on with %d rows at a time", self._rows)
            return
        for image in images:
            self._fail(image.order, told)

    # Those that cannot.

    def _step_alone(self, image: ImageId) -> None:
        order = image.order
        try:
            if order.run is None:
                self._prepare(order)
                self._observer.admitted(order.handle, order.images)
            started = time.perf_counter()
            step = next_step(order, self._pipe, self.decode)
            self._pace.enqueued()
        except BaseException as error:  # of a sampler of the user's
            self._fail(order, as_told(error))
            return
        if step is None:
            self._leave(image)
            self._has_sampled(order)
            return
        self._observer.ticked(order.images, order.rows, time.perf_counter() - started)
        for place in range(order.images if order.is_watched else 0):
            self._tell(ImageId(order, place), of_one_image(step, place))

    # Both.

    def _tell(self, image: ImageId, step: Step) -> None:
        order = image.order
        if order.is_over:
            return
        told = ImageStep(
            order.taken + step.index,
            step.sigma,
            step.sigma_next,
            step.latents,
            step.denoised,
            self._pipe.previewer,
            self.decode,
            image.place,
        )
        try:
            self._pipe.calls.user_function(order.step)(told)
        except BaseException as error:
            self._fail(order, error)

    def _has_sampled(self, order: Order) -> None:
        """An image has made its last step of a pass: once all have, go on, or have them decoded."""
        if (latents := order.latents()) is None:
            return
        if order.next_pass is None:
            self._sampled.append((order, latents))
            return
        try:
            with self._observer.timing("encode"):
                prepare_second(order, order.next_pass, latents, self._pipe)
            self._enter(order)
        except Exception as error:
            self._fail(order, as_told(error))

    def _decode(self) -> None:
        """Have decoded what is finished: all of it beside the ticks, or the next request now."""
        decoding = self._decoding
        while self._sampled:
            order, latents = self._sampled.popleft()
            if order.is_over:
                continue
            future = decoding.submit(partial(self._finish, order, latents), latents)
            if not decoding.is_beside:
                self._decoded(order, future)
                return
            self._being_decoded += 1
            future.add_done_callback(partial(self._tell_decoded, order))

    def _tell_decoded(self, order: Order, result: Future[Result[Any]]) -> None:
        self._messages.put(Decoded(order, result))

    def _finish(self, order: Order, latents: Tensor) -> Result[Any]:
        encoded = order.encoded
        assert encoded is not None
        with self._observer.timing("decode"):
            return self._pipe.finish(
                order.job,
                encoded,
                latents,
                order.lora_settings,
                decoder=self._decoding.decoder,
                safety_checker=self._decoding.safety_checker,
                in_flight=order.was_shared,
            )

    def _decoded(self, order: Order, result: Future[Result[Any]]) -> None:
        try:
            made = result.result()
        except BaseException as error:  # of an image filter of the user's
            self._fail(order, as_told(error))
            return
        if order.is_cancelled:
            self._fail(order, CancelledError(_CANCELLED))
        elif not order.is_over:
            self._orders.pop(order, None)
            order.finish(made)

    def _leave(self, image: ImageId) -> None:
        """An image goes, finished or not."""
        self._shared.leave(image)
        if image in self._scheduler:
            self._scheduler.remove(image)
            self._count()

    def _fail(self, order: Order, error: BaseException) -> None:
        self._orders.pop(order, None)
        for place in range(order.images):
            image = ImageId(order, place)
            if image in self._scheduler:
                self._leave(image)
        order.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        for order in list(self._orders):
            self._fail(order, error)
