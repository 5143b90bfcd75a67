"""Many requests on one pipeline, made together: in-flight batching."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdrt.batching.handle import Handle
from kdrt.batching.image_class import Loras
from kdrt.batching.loop import BatchingLoop
from kdrt.batching.observer import Observer
from kdrt.batching.order import Callback, Order
from kdrt.batching.scheduler import Limits
from kdrt.common.literals import OutputType
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_bool, check_callable, check_int
from kdrt.errors import InvalidRequestError, PipelineClosedError
from kdrt.images.output import Images
from kdrt.pipeline.call_state import check_process
from kdrt.pipeline.pipeline import Pipeline
from kdrt.pipeline.result import Result
from kdrt.pipeline.service import checked_shapes
from kdrt.request.complete import check_names
from kdrt.request.fields import Request

_ROWS_ON_CPU = 8
"""Rows of a UNet run: with more of them a row takes no less time, and short requests wait."""

_ROWS_ON_CUDA = 16

_MOST_ROWS = 256

_CLOSED = "the batcher was closed before this request was made"

_LET_GO = "the batcher was let go of before this request was made; keep it until then"


class Batcher:
    """Makes the requests of many callers together, on one pipeline.

    Requests with different samplers, step counts, guidance scales, prompts and seeds share the
    evaluations of the UNet. A request joins at the next evaluation, and its images leave when they
    are done. Each image is the one that ``pipe(…)`` makes from its request.

        with kdrt.Batcher(pipe) as batcher:
            handles = [batcher.submit({"prompt": prompt}) for prompt in prompts]
            for number, handle in enumerate(handles):
                handle.result().save(f"{number}.png")

    ``docs/explanation/in-flight-batching.md`` says which requests share evaluations;
    :attr:`kdrt.Result.in_flight` says whether one did. Direct calls of the pipeline wait until all
    submitted requests are made. Any thread may submit.

    Attributes:
        max_images: maximum images of one shape in flight.

    Args:
        pipe: a pipeline with all of its engines loaded.
        max_rows: maximum rows of one UNet run; an image with guidance takes two. None is 8 on a
            CPU and 16 on CUDA, or fewer if the engine was built for fewer.
        max_images: maximum images of one shape in flight; None is as many as there are rows. With
            more images than fit into a run, short requests pass long ones.
        observer: is told what happens, for metrics.

    Raises:
        InvalidRequestError: ``pipe`` is no pipeline, or one that loads its engines one after
            another (``low_vram``); or a number is out of range.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        max_rows: int | None = None,
        max_images: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        if not isinstance(pipe, Pipeline):
            raise InvalidRequestError(
                f"a batcher is made for a pipeline, such as kdrt.load('demo'), not for {pipe!r}"
            )
        pipe.calls.check_open()
        if pipe.offloader is not None:
            raise InvalidRequestError(
                "in-flight batching needs all networks at once, and this pipeline loads them in "
                "turn: load it without low_vram"
            )
        rows = _rows(pipe, max_rows)
        images = rows if max_images is None else check_int("max_images", max_images, 1, _MOST_ROWS)
        self._pipe = pipe
        self._process = os.getpid()
        self._max_rows = rows
        self._is_closed = False
        self._turn = threading.Lock()
        self._loop = BatchingLoop(pipe, Limits(rows, images), observer or Observer())
        self._thread = threading.Thread(target=self._loop.run, name="kdrt-batcher", daemon=True)
        self._thread.start()
        # A batcher that nobody closed: its thread must not outlive it, nor the interpreter.
        self._finalizer = weakref.finalize(self, _stop, weakref.ref(self), self._loop, self._thread)
        self.max_images = images

    @overload
    def submit(
        self,
        request: Request,
        *,
        output_type: Literal["pil"] = "pil",
        loras: Loras | None = None,
        callback: Callback | None = None,
        watch: bool = False,
    ) -> Handle[list[Image.Image]]: ...

    @overload
    def submit(
        self,
        request: Request,
        *,
        output_type: Literal["np"],
        loras: Loras | None = None,
        callback: Callback | None = None,
        watch: bool = False,
    ) -> Handle[NDArray[np.float32]]: ...

    @overload
    def submit(
        self,
        request: Request,
        *,
        output_type: Literal["pt", "latent"],
        loras: Loras | None = None,
        callback: Callback | None = None,
        watch: bool = False,
    ) -> Handle[Tensor]: ...

    @overload
    def submit(
        self,
        request: Request,
        *,
        output_type: OutputType,
        loras: Loras | None = None,
        callback: Callback | None = None,
        watch: bool = False,
    ) -> Handle[Images]: ...

    @in_neutral_modes
    def submit(
        self,
        request: Request,
        *,
        output_type: OutputType = "pil",
        loras: Loras | None = None,
        callback: Callback | None = None,
        watch: bool = False,
    ) -> Handle[Any]:
        """Ask for the images of a request. This checks the whole request and returns without
        waiting for the images.

        Args:
            request: what to make; fields that are absent have their defaults.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`kdrt.Result`.
            loras: use exactly these of the pipeline's loaded LoRAs, at these scales; None uses
                those that the pipeline uses. Requests with the same LoRAs and scales share
                evaluations.
            callback: called with an `ImageStep` after every step of each image, in the batcher's
                thread; all requests wait for it. The tensors are valid only during the call. If it
                returns False, the request ends with CancelledError; if it raises an exception, the
                request fails with that exception.
            watch: keep the steps for the handle's iterator.

        Returns:
            The handle of the request.

        Raises:
            InvalidRequestError: a field is wrong, a LoRA is not loaded, or a scale is no finite
                number; or this thread is in the middle of a generation on the pipeline.
            PipelineClosedError: the batcher or the pipeline is closed.
            EngineError: this process was forked from the one that made the batcher.
        """
        check_process(self._process)
        self._check_open()
        check_names(request)
        watch = check_bool("watch", watch)
        if callback is not None:
            check_callable("callback", callback)
        if loras is not None:
            loras = self._pipe.adapters.checked_loras(loras)
        pipe = self._pipe
        if threading.current_thread() is not self._thread and pipe.calls.is_of_this_thread():
            raise InvalidRequestError(
                "this thread is in the middle of a generation on this pipeline, which the batcher "
                "would wait for: take all of its steps or close() it first"
            )
        job = pipe.resolve(request, output_type)
        spec = pipe.adapters.unet_spec(job.unet_features)
        rows = pipe.parts_of(job).rows
        if rows > self._max_rows:
            raise InvalidRequestError(
                f"this image takes {rows} rows of a UNet run (one more for guidance), and here it "
                f"has {self._max_rows} at most: ask for less at a time, such as guidance_scale=1, "
                "or for a batcher (or an engine) with more rows"
            )
        order = Order(
            job,
            spec,
            loras,
            callback,
            watch=watch,
            cancel=self._loop.cancel,
            thread=self._thread,
        )
        with self._turn:
            self._check_open()
            self._loop.submit(order)
        return order.handle

    def map(
        self,
        requests: Iterable[Request],
        *,
        output_type: OutputType = "pil",
        loras: Loras | None = None,
    ) -> Iterator[Result[Any]]:
        """The results of many requests, in their order. Only as many requests are submitted ahead
        as keep the engines busy, so there may be any number of them.

        Args:
            requests: what to make; they are taken one by one as the images are made.
            output_type: see :meth:`submit`.
            loras: see :meth:`submit`.

        Raises:
            KdrtError: a request is wrong or has failed; the requests that were submitted ahead are
                cancelled.
        """
        ahead: deque[Handle[Any]] = deque()
        try:
            for request in requests:
                ahead.append(self.submit(request, output_type=output_type, loras=loras))
                if len(ahead) > 2 * self.max_images:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for handle in ahead:
                handle.cancel()

    def warmup(
        self, shapes: Iterable[Sequence[int]] | None = None, **fields: Unpack[Request]
    ) -> None:
        """Make images of every shape and discard them: one at a time, then two, four and so on, up
        to as many as share a run. The first requests then need not wait for what is made only once.

            batcher.warmup([(512, 512), (768, 512)], steps=2)

        Args:
            shapes: (height, width) in pixels; None is the default size.
            fields: those of the requests; the prompt is ``""`` by default.

        Raises:
            InvalidRequestError: a shape or a field is wrong, or there are too many shapes.
            ShapeError: the engine was not made for a shape.
            OutOfMemoryError: an image of a shape does not fit into memory.
        """
        begun = {"seed": 0, "prompt": "", **fields}
        for shape in checked_shapes(shapes, fields):
            images = 1
            while images <= max(1, self._max_rows // 2):
                request = cast(Request, {**begun, **shape, "images_per_prompt": images})
                self.submit(request, output_type="pt").result()
                images *= 2

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``latents [B, C, h, w]`` with the VAE, to look at an unfinished image; see
        `ImageStep.decode`."""
        return self._loop.decode(latents)

    @property
    def waiting(self) -> int:
        """The number of images that wait to be admitted."""
        return self._loop.counts().waiting

    @property
    def in_flight(self) -> int:
        """The number of images that are being made."""
        return self._loop.counts().in_flight

    def close(self, *, cancel: bool = False) -> None:
        """Finish the submitted requests, or cancel them, and end the thread. The pipeline stays
        open. Closing again does nothing.

        ``with kdrt.Batcher(pipe) as batcher:`` closes the batcher at the end of the block, and
        cancels if the block raises an exception. From a callback, or from a thread in the middle of
        a generation on the pipeline, this returns without waiting, because it would wait for
        itself.

        Args:
            cancel: end the requests at the next evaluation, with CancelledError.
        """
        with self._turn:
            self._is_closed = True
        self._loop.close(cancel_with=_CLOSED if cancel else None)
        is_mine = threading.current_thread() is self._thread
        if is_mine or self._pipe.calls.is_of_this_thread():
            return
        self._loop.wait()
        self._thread.join()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel=kind is not None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise PipelineClosedError("this batcher is closed; make another for the same pipeline")
        self._pipe.calls.check_open()


def default_rows(device: str) -> int:
    """The default number of rows of a UNet run, if the engine was built for so many.

    Args:
        device: the type of the device that runs the UNet, as in ``torch.device.type``.
    """
    return _ROWS_ON_CPU if device == "cpu" else _ROWS_ON_CUDA


def _rows(pipe: Pipeline, asked: int | None) -> int:
    unet = pipe.denoising.unet
    _, most = unet.limits().get("B", (1, _MOST_ROWS))
    if asked is not None:
        return check_int("max_rows", asked, 1, most)
    return min(most, default_rows(unet.device.type))


def _stop(batcher: weakref.ref[Batcher], loop: BatchingLoop, thread: threading.Thread) -> None:
    loop.close(cancel_with=_LET_GO)
    # Where it is still there the interpreter ends. A batcher that was forgotten may be so in any
    # thread, in one too that its own waits for.
    if batcher() is not None:
        loop.wait()
        thread.join()
