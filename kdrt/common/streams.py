"""A CUDA stream of its own for every pipeline.

TensorRT synchronises the device for work on the default stream, and a CUDA graph cannot be
captured there. Between the caller's stream and ours each waits for the other on the GPU, where
work changes hands; the host waits for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch

Value = TypeVar("Value")
Final = TypeVar("Final")
Arguments = ParamSpec("Arguments")


class OwnStream:
    """The stream of a pipeline; on a CPU all of this does nothing.

    Args:
        device: of the pipeline's UNet.
        stream: the one to use, where an engine is tied to one; None makes one.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self._device = device
        self.stream = stream
        if stream is None and device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enqueue on this stream within the block: after all that the caller has enqueued, and
        before all that the caller enqueues next."""
        if self.stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self._device)
        self.stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            caller.wait_stream(self.stream)

    def over(self, steps: Generator[Value, None, Final]) -> Generator[Value, None, Final]:
        """The same steps, each made on this stream and handed out on the caller's."""
        return steps if self.stream is None else taken_within(steps, self.active)

    def calling(self, function: Callable[..., Value]) -> Callable[..., Value]:
        """``function``, run on this stream."""

        def call(*arguments: object) -> Value:
            with self.active():
                return function(*arguments)

        return call


def taken_within(
    steps: Generator[Value, None, Final], context: Callable[[], AbstractContextManager[object]]
) -> Generator[Value, None, Final]:
    """The same steps, each of them taken within a context of its own and handed out outside."""
    try:
        while True:
            with context():
                try:
                    step = next(steps)
                except StopIteration as end:
                    return cast(Final, end.value)
            yield step
    finally:
        steps.close()


class HasPipeline(Protocol):
    """What wraps a pipeline."""

    pipeline: Any


Self = TypeVar("Self", bound=HasPipeline)


def on_own_stream(
    method: Callable[Concatenate[Self, Arguments], Value],
) -> Callable[Concatenate[Self, Arguments], Value]:
    """A method of what wraps a pipeline, run on the pipeline's stream."""

    @wraps(method)
    def call(self: Self, *arguments: Arguments.args, **options: Arguments.kwargs) -> Value:
        with self.pipeline.cuda_stream.active():
            return method(self, *arguments, **options)

    return call  # type: ignore[return-value]
