"""A submitted request, as the thread that makes it sees it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdrt.batching.handle import Handle, ImageStep, Made, Steps
from kdrt.batching.image_class import ImageClass, Loras
from kdrt.batching.scheduler import Entry
from kdrt.denoise.in_flight import can_share
from kdrt.denoise.inputs import DenoiserInputs, SamplingRun
from kdrt.errors import CancelledError
from kdrt.pipeline.encoding import EncodedPrompts
from kdrt.pipeline.metadata import Settings
from kdrt.pipeline.result import Result
from kdrt.request.job import Job, SecondPass
from kdrt.sampling import Plan
from kdrt.vae.preview import PreviewStep
from kdrt_engines import EngineSpec

Callback = Callable[[ImageStep], object]


class ImageId(NamedTuple):
    """The name of an image in the scheduler."""

    order: Order
    place: int


class Order:
    """A submitted request.

    Attributes:
        job: what is to be made.
        current: the pass of it that is at work.
        taken: steps of passes before that.
        spec: of the UNet that it was resolved for.
        handle: what the caller has.
        loras: at these scales; None is those that the pipeline has.
        is_shared: the evaluations of this pass can be shared.
        was_shared: so could those of all passes that have begun.
        is_cancelled: nobody wants it any more.
        klass: of its images, once it is known.
        rows: of a UNet run of all its images, likewise.
        slots: of its images in flight, by their place in the request.
        encoded, run, noise, lora_settings: made when its first image is admitted.
        steps: of a run that is not shared.

    Args:
        callback: called after every step of each image.
        watch: whether steps are kept for the handle.
        cancel: called with the order when the caller cancels it.
        thread: makes it.
    """

    def __init__(
        self,
        job: Job,
        spec: EngineSpec,
        loras: Loras | None,
        callback: Callback | None,
        *,
        watch: bool,
        cancel: Callable[[Order], object],
        thread: Thread,
    ) -> None:
        self.job = self.current = job
        self.taken = 0
        self.spec = spec
        self.loras = loras
        self.is_shared = self.was_shared = can_share(job.plan, job.shortcuts)
        self._callback = callback
        self._future: Future[Made[Any]] = Future()
        self._future.set_running_or_notify_cancel()
        self._steps = Steps() if watch else None
        self._cancel = cancel
        self.is_cancelled = False
        # A handle that is kept keeps nothing of a request that is over, nor of the batcher.
        own = weakref.ref(self)
        self.handle: Handle[Any] = Handle(
            job.steps, self._future, self._steps, lambda: _cancel(own), thread
        )
        self.klass = ImageClass(None, None)
        self.rows = 0
        self.slots: dict[int, int] = {}
        self._latents: dict[int, Tensor] = {}
        self.encoded: EncodedPrompts | None = None
        self.run: SamplingRun | None = None
        self.noise: Tensor | None = None
        self.lora_settings: Settings = ()
        self.steps: Iterator[PreviewStep] | None = None

    def cancel(self) -> None:
        """Have it ended by the thread that makes it; by any thread."""
        self.is_cancelled = True
        self._cancel(self)

    @property
    def images(self) -> int:
        """B."""
        return len(self.job.seeds)

    @property
    def is_over(self) -> bool:
        """Whether it is made or has failed."""
        return self._future.done()

    @property
    def is_watched(self) -> bool:
        """Whether anybody wants its steps."""
        return self._callback is not None or self._steps is not None

    def entries(self, klass: ImageClass, *, rows: int) -> list[Entry]:
        """What the scheduler is told of it: its images one by one, or where they cannot share as
        one.

        Args:
            klass: of its images.
            rows: of the UNet that each of them takes.
        """
        self.klass = klass
        self.rows = self.images * rows
        plan = self.current.plan
        evaluations = plan.evaluations if isinstance(plan, Plan) else plan.steps
        count = self.images if self.is_shared else 1
        return [
            Entry(
                ImageId(self, place),
                klass,
                klass.group,
                rows if self.is_shared else 1,
                evaluations,
                shares=self.is_shared,
            )
            for place in range(count)
        ]

    def prepared(self, encoded: EncodedPrompts, run: SamplingRun, lora_settings: Settings) -> None:
        """What its images begin with is known."""
        self.encoded, self.lora_settings = encoded, lora_settings
        self._begin(run)

    @property
    def next_pass(self) -> SecondPass | None:
        """What is made of the latents of this pass; None where they are the last."""
        return self.job.second if self.current is self.job else None

    def begin_second_pass(self, job: Job, run: SamplingRun) -> None:
        """Go on with another pass, which has not been in the scheduler yet."""
        self.taken += self.current.plan.steps
        self.current = job
        self.is_shared = can_share(job.plan, job.shortcuts)
        self.was_shared &= self.is_shared
        self._latents.clear()
        self.steps = None
        self._begin(run)

    def _begin(self, run: SamplingRun) -> None:
        self.run, self.noise = run, None
        if self.is_shared:
            assert isinstance(run.plan, Plan)
            self.noise = run.noise.draw(run.plan.slots) if run.plan.slots else None

    def image(self, index: int) -> tuple[Plan, Tensor, Tensor | None, DenoiserInputs]:
        """What one image begins with: see `kdrt.denoise.in_flight.InFlight.admit`."""
        run, one = self.run, slice(index, index + 1)
        assert run is not None
        assert isinstance(run.plan, Plan)
        noise = None if self.noise is None else self.noise[:, one]
        return run.plan, run.latents[one], noise, run.inputs.one(index)

    def step(self, step: ImageStep) -> None:
        """Tell of a completed step.

        Raises:
            Whatever the callback raises; CancelledError if it returned False.
        """
        if self._steps is not None:
            kept = replace(step, latents=step.latents.clone(), denoised=step.denoised.clone())
            ready = None
            if step.latents.is_cuda:
                ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                ready.record()
            self._steps.add(kept, ready)
        if self._callback is not None and self._callback(step) is False:
            raise CancelledError("the callback returned False, which ends the request")

    def sampled(self, index: int, latents: Tensor) -> None:
        """The last step of an image is taken: ``latents [1, C, h, w]``."""
        self._latents[index] = latents

    def latents(self) -> Tensor | None:
        """Those of all images, ``[B, C, h, w]``; None while some are missing."""
        if len(self._latents) < self.images:
            return None
        return torch.cat([self._latents[index] for index in range(self.images)])

    def finish(self, result: Result[Any]) -> None:
        """It is made."""
        assert self.encoded is not None
        warnings = self.encoded.warnings
        self._end()
        self._future.set_result(Made(result, warnings.warn))

    def fail(self, error: BaseException) -> None:
        """It has failed, or was cancelled; nothing is known of it any more."""
        if not self.is_over:
            self._end()
            self._future.set_exception(error)

    def _end(self) -> None:
        self._latents.clear()
        self.encoded = self.run = self.noise = self.steps = None
        if self._steps is not None:
            self._steps.close()


def _cancel(order: weakref.ref[Order]) -> None:
    if (there := order()) is not None:
        there.cancel()
