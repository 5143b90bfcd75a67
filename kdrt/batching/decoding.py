"""Finished images are decoded beside the ticks of those that are still on their way.

A thread of its own does it, with a decoder of its own: on CUDA on a stream of its own, so that
nothing waits for the pixels but this thread. Engines that are tied to one stream, as those of ONNX
Runtime on CUDA are, would be used by two threads at once there; with them it is done between ticks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from kdrt.common.torch_modes import neutral_modes
from kdrt.images.safety import SafetyChecker
from kdrt.pipeline.pipeline import Pipeline
from kdrt.vae.coder import Decoder
from kdrt_engines import Engine

Value = TypeVar("Value")


class Decoding:
    """The thread that decodes for a pipeline.

    Args:
        pipe: its engines are used, and the switches of its VAE.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._engine: Engine | None = None
        self._decoder: Decoder | None = None
        self._checker: SafetyChecker | None = None
        self._ending = threading.Lock()
        self._is_closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kdrt-decode")
        unet = pipe.engines["unet"]
        self._is_tied = unet.stream is not None
        self._stream: torch.cuda.Stream | None = None
        if unet.device.type == "cuda" and not self._is_tied:
            self._stream = torch.cuda.Stream(unet.device)  # type: ignore[no-untyped-call]

    @property
    def decoder(self) -> Decoder:
        """The decoder, for work in this thread alone."""
        engine, switches = self._pipe.engines["vae_decoder"], self._pipe.vae.decoder
        if self._decoder is None or engine is not self._engine:
            self._engine, self._decoder = engine, Decoder(engine.apart())
        self._decoder.batch, self._decoder.tiling = switches.batch, switches.tiling
        return self._decoder

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """Likewise; None where the pipeline has none."""
        if self._pipe.safety_checker is None:
            return None
        if self._checker is None:
            self._checker = SafetyChecker(self._pipe.engines["safety_checker"].apart())
        return self._checker

    def submit(self, work: Callable[[], Value], *sources: Tensor) -> Future[Value]:
        """Run ``work`` in the thread, after what is enqueued on the current stream by now; or at
        once, where the engines are tied to a stream.

        Args:
            work: what to run.
            sources: the tensors that it reads, which may be let go of before it is run.
        """
        before: torch.cuda.Event | None = None
        if self._stream is not None:
            before = torch.cuda.Event()  # type: ignore[no-untyped-call]
            before.record()

        def run() -> Value:
            with neutral_modes(), self._on_stream(before):
                for source in sources:
                    if source.is_cuda and self._stream is not None:
                        source.record_stream(self._stream)
                value = work()
                if self._stream is not None:
                    self._stream.synchronize()  # what is handed out is ready for every stream
                return value

        if self._is_tied:
            done: Future[Value] = Future()
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            return done
        return self._worker.submit(run)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``latents [B, C, h, w]`` in the thread, and wait for it: for whoever looks at a
        step meanwhile. By the pipeline's own decoder after the end of the thread, and where the
        engines are tied to a stream: then it waits until no request is being made, except in a
        callback."""
        with self._ending:
            work = None
            if not (self._is_closed or self._is_tied):
                work = self.submit(lambda: self.decoder(latents), latents)
        return self._pipe.vae.decoder(latents) if work is None else work.result()

    def close(self) -> None:
        """Wait for what is there, and end the thread."""
        with self._ending:
            self._is_closed = True
        self._worker.shutdown()

    def _on_stream(self, before: torch.cuda.Event | None) -> AbstractContextManager[object]:
        if self._stream is None or before is None:
            return nullcontext()
        self._stream.wait_event(before)
        return torch.cuda.stream(self._stream)
