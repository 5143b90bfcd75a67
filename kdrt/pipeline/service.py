"""What a long-running program asks of a pipeline besides images: warm-up, cancelling, closing."""

from __future__ import annotations

import gc
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from kdrt.common.validation import excerpt
from kdrt.denoise.denoising import SIZES_KEPT
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import Calls

_logger = logging.getLogger(__name__)

_KEPT = ("bundle", "calls", "cuda_graph")
"""Attributes that a closed pipeline still has."""


class Service(ABC):
    """The life of a pipeline.

    Attributes:
        calls: lets one call at a time use the buffers; all calls go through it.
    """

    calls: Calls

    @abstractmethod
    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        """Make images."""

    @abstractmethod
    def _release_buffers(self) -> None:
        """Free what the next call can make again."""

    def warmup(self, shapes: Iterable[Sequence[int]] | None = None, **fields: Any) -> None:
        """Make one batch of images for every shape and discard it. The first request of that shape
        then finds its buffers bound, its kernels chosen and its CUDA graphs captured. A warm-up
        takes as long as the images it makes.

            pipe.warmup([(512, 512), (768, 512, 4)], steps=20, sampler="euler")

        Give the fields that the requests will have. Buffers depend on the size, the number of
        images, whether there is guidance, and the number of chunks of the prompt. CUDA graphs also
        depend on the sampler, and with ``cuda_graph="loop"`` on the steps. With ``low_vram`` a
        warm-up is useless, because every image loads the engines again.

        Args:
            shapes: (height, width) or (height, width, images per prompt), sizes in pixels; at most
                :data:`kdrt.denoise.denoising.SIZES_KEPT` shapes; None is one image of the default
                size.
            fields: those of :meth:`__call__`; the prompt is ``""`` by default.

        Raises:
            InvalidRequestError: a shape or a field is wrong, or there are too many shapes.
            ShapeError: the engine was not made for a shape.
            OutOfMemoryError: a shape does not fit into memory.
        """
        for shape in checked_shapes(shapes, fields):
            started = time.perf_counter()
            defaults = {"seed": 0, "output_type": "pt"}
            if "prompt_embeds" not in fields:
                defaults["prompt"] = ""
            self(**{**defaults, **fields, **shape})
            _logger.info(
                "warm for %s in %.2f s",
                ", ".join(f"{name} {value}" for name, value in shape.items()) or "the default size",
                time.perf_counter() - started,
            )

    def cancel(self) -> bool:
        """End the running call at its next step; the call then raises CancelledError. Any thread
        may cancel.

        Calls that wait for the running call proceed as usual. A call that has taken its last step
        is not ended, and neither is a loop that runs as one CUDA graph.

        Returns:
            Whether a call was running.
        """
        return self.calls.cancel()

    def close(self) -> None:
        """Free the engines and all memory.

        This waits for the running call of another thread; some of the calls that are waiting may
        run first. A running call of this thread (a generation whose steps were not all taken) is
        cancelled.

        Later calls, and reading a part of the pipeline, raise PipelineClosedError. Closing again
        does nothing. ``with kdrt.load(…) as pipe:`` closes the pipeline at the end of the block.
        """
        self.calls.close(self._drop_parts)

    def __enter__(self) -> Self:
        self.calls.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drop_parts(self) -> None:
        self._release_buffers()
        for name in self.__dict__.keys() - set(_KEPT):
            del self.__dict__[name]
        gc.collect()  # engines and their bindings may refer to each other
        torch.cuda.empty_cache()
        _logger.info("closed")

    if not TYPE_CHECKING:  # type checkers are to report unknown names

        def __getattr__(self, name: str) -> object:
            if "calls" in self.__dict__ and not name.startswith("__"):
                self.calls.check_open()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def checked_shapes(
    shapes: Iterable[Sequence[int]] | None, fields: Mapping[str, Any]
) -> list[dict[str, int]]:
    """The fields that each shape of a warm-up stands for.

    Args:
        shapes: (height, width) or (height, width, images per prompt) in pixels; None is one image
            of the default size.
        fields: that are given too.

    Raises:
        InvalidRequestError: a shape is wrong, or given twice, or there are too many.
    """
    named = [name for name in ("height", "width", "images_per_prompt") if name in fields]
    if shapes is None:
        return [{}]
    if named:
        raise InvalidRequestError(f"the shapes give {named[0]} already; leave one of the two out")
    try:
        listed = [tuple(shape) for shape in shapes]
    except TypeError:
        raise InvalidRequestError(
            "shapes must be a list of (height, width) or (height, width, images), such as "
            f"[(512, 512)], not {excerpt(shapes)}"
        ) from None
    for shape in listed:
        if len(shape) not in (2, 3) or not all(isinstance(each, Integral) for each in shape):
            raise InvalidRequestError(
                f"a shape is (height, width) or (height, width, images), not {excerpt(shape)}"
            )
    if len(set(listed)) > SIZES_KEPT:
        raise InvalidRequestError(
            f"a pipeline keeps the buffers of {SIZES_KEPT} sizes, so it cannot be warm for "
            f"{len(set(listed))}; leave the rarest out"
        )
    return [
        dict(zip(("height", "width", "images_per_prompt"), shape, strict=False)) for shape in listed
    ]
