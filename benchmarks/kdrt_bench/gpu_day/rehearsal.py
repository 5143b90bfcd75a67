"""The same on a CPU: stand-ins for CUDA's events and graphs, so that the code that uses them runs.

Their contracts are CUDA's where the benchmark relies on them: an event has a time once it was
recorded, and work that is captured happens at a replay and not during the capture. A rehearsal
says nothing about a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

from kdrt.denoise import cuda_graphs
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.graph_level import CudaGraphLevel


class HostEvent:
    """A stand-in for ``torch.cuda.Event``: the host's time.

    Raises:
        RuntimeError: its time is asked for, and it was not recorded, or cannot have one.
    """

    def __init__(self, enable_timing: bool = False) -> None:
        self._timing = enable_timing
        self._seconds: float | None = None

    def record(self) -> None:
        """Now."""
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        """On a CPU all work is done when its call returns."""
        self._time()

    def elapsed_time(self, end: HostEvent) -> float:
        """Milliseconds from here to ``end``."""
        return 1e3 * (end._time() - self._time())

    def _time(self) -> float:
        if not self._timing or self._seconds is None:
            raise RuntimeError(
                "the event has no time: it must be recorded, with enable_timing=True"
            )
        return self._seconds


class RepeatedWork:
    """A stand-in for a CUDA graph, which does the work again at every replay.

    As with a real one the work is run once before, and not by the capture.
    """

    size = 0

    def __init__(self, work: Callable[[], None], held: Sequence[Tensor]) -> None:
        self._kept_alive = held
        self._work = work
        work()

    def replay(self) -> None:
        """Do the work."""
        self._work()


@contextmanager
def rehearsed() -> Iterator[None]:
    """Have the stand-ins in place of CUDA's."""

    def level(asked: Any, engine: object) -> CudaGraphLevel:
        found: CudaGraphLevel = asked or "step"
        return found

    made = Denoising.__init__

    def make(self: Denoising, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        # Without a stream nothing is captured; who captures here asks nothing of it.
        self._stream = cast(torch.cuda.Stream, object())

    with ExitStack() as stack:
        # The demo's tensors are too small to share among threads, which then wait for each other.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        stack.enter_context(patch.object(torch.cuda, "Event", HostEvent))
        stack.enter_context(patch.object(Denoising, "__init__", make))
        stack.enter_context(patch.object(cuda_graphs, "capture_on", lambda _: RepeatedWork))
        stack.enter_context(patch("kdrt.pipeline.pipeline.cuda_graph_level", level))
        yield
