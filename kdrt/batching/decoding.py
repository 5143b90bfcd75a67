"""Finished images become pixels, without holding up those that are still on their way.

On CUDA a thread of its own decodes them, on a stream of its own, so that nothing waits for the
pixels but this thread. On a CPU that would be a second network on the same cores: there the loop
decodes between two ticks, one request at a time. So it does with engines that are tied to one
stream, as those of ONNX Runtime on CUDA are, which two threads must not use at once.
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
    """Decodes for a pipeline.

    Attributes:
        is_beside: it is done in a thread of its own, beside the ticks.

    Args:
        pipe: its engines are used, and the switches of its VAE.
        beside: see :attr:`is_beside`; None is what suits the device.
    """

    def __init__(self, pipe: Pipeline, *, beside: bool | None = None) -> None:
        self._pipe = pipe
        unet = pipe.engines["unet"]
        self._is_tied = unet.stream is not None
        on_cuda = unet.device.type == "cuda"
        self.is_beside = on_cuda and not self._is_tied if beside is None else beside
        self._turn = threading.RLock()
        self._engine: Engine | None = None
        self._decoder: Decoder | None = None
        self._checker: SafetyChecker | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        if self.is_beside:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="kdrt-decode")
            if on_cuda:
                self._stream = torch.cuda.Stream(unet.device)  # type: ignore[no-untyped-call]

    @property
    def decoder(self) -> Decoder:
        """The decoder, for :meth:`submit`."""
        engine, switches = self._pipe.engines["vae_decoder"], self._pipe.vae.decoder
        with self._turn:
            if self._decoder is None or engine is not self._engine:
                self._engine = engine
                self._decoder = Decoder(engine.apart(), turn=lambda: self._turn)
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
        """Run ``work`` at once; or, :attr:`is_beside`, in the thread, after what is enqueued on the
        current stream by now.

        Args:
            work: what to run.
            sources: the tensors that it reads, which may be let go of before it is run.
        """
        if self._worker is None:
            return _done(work)
        before: torch.cuda.Event | None = None
        if self._stream is not None:
            before = torch.cuda.Event()  # type: ignore[no-untyped-call]
            before.record()

        def run() -> Value:
            with neutral_modes(), self._on_stream(before):
                for source in sources:
                    if self._stream is not None:
                        source.record_stream(self._stream)
                value = work()
                if self._stream is not None:
                    self._stream.synchronize()  # what is handed out is ready for every stream
                return value

        return self._worker.submit(run)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``latents [B, C, h, w]`` for whoever looks at a step meanwhile, in any thread.

        With engines that are tied to a stream it waits until no request is being made, except in a
        callback.
        """
        if self._is_tied:
            return self._pipe.vae.decoder(latents)
        with self._turn:
            work = None
            if self._worker is not None:
                work = self.submit(lambda: self.decoder(latents), latents)
        if work is not None:
            return work.result()
        with neutral_modes():
            return self.decoder(latents)

    def close(self) -> None:
        """Wait for what is there, and end the thread."""
        with self._turn:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()

    def _on_stream(self, before: torch.cuda.Event | None) -> AbstractContextManager[object]:
        if self._stream is None or before is None:
            return nullcontext()
        self._stream.wait_event(before)
        return torch.cuda.stream(self._stream)


def _done(work: Callable[[], Value]) -> Future[Value]:
    future: Future[Value] = Future()
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    return future
