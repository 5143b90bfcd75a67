"""CUDA graphs: work captured once, launched as one from then on.

A graph repeats what was enqueued while it was captured, at the same addresses. So whatever it
touches must stay where it is for as long as the graph lives: inputs, outputs, and the memory that
:meth:`Binding.held <kdrt_engines.base.Binding.held>` names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from kdrt_engines.errors import EngineError


class CaptureError(Exception):
    """The work cannot be captured: it allocates, synchronises, or copies from pageable memory."""


class Graph(Protocol):
    """Captured work."""

    size: int
    """Bytes of device memory that the graph holds for itself."""

    def replay(self) -> None:
        """Enqueue the work on the current stream."""
        ...


class CudaGraph:
    """``work`` captured on ``stream``.

    The work is run once before, uncaptured: what a library puts off until it is first called
    (handles, workspaces, compiled kernels) cannot happen inside a capture.

    Args:
        work: what to capture; takes nothing and returns nothing.
        stream: a stream that is not the default one.
        held: memory that must live as long as the graph, besides what ``work`` itself refers to.

    Raises:
        CaptureError: the work cannot be captured; nothing is left captured or half done.
    """

    def __init__(
        self,
        work: Callable[[], None],
        stream: torch.cuda.Stream,
        held: Sequence[Tensor] = (),
    ) -> None:
        self._held = (work, *held)
        self._graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()
        torch.cuda.empty_cache()  # as the capture does, or the difference would be too small
        before = torch.cuda.memory_reserved(stream.device)
        try:
            with torch.cuda.graph(self._graph, stream=stream):
                work()
        except (RuntimeError, EngineError) as error:  # the driver's refusal, or an engine's
            torch.cuda.synchronize(stream.device)
            # Ending a broken capture fails too, and that hides what broke it.
            first = error.__context__ or error
            reason = (str(first).splitlines() or ["no reason was given"])[0]
            raise CaptureError(reason) from error
        self.size = max(0, torch.cuda.memory_reserved(stream.device) - before)

    def replay(self) -> None:
        self._graph.replay()


CUDA_GRAPH_MEMORY = 2 << 30
"""Most bytes that the graphs of a pipeline hold together."""


class CudaGraphCache:
    """Captured graphs by key, the least recently used dropped first.

    Args:
        limit: most bytes that the graphs may hold together.
        count: most graphs.
    """

    def __init__(self, limit: int = CUDA_GRAPH_MEMORY, count: int = 16) -> None:
        self._limit, self._count = limit, count
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def size(self) -> int:
        """Bytes that the graphs hold together."""
        return sum(graph.size for graph in self._graphs.values())

    def get(self, key: Hashable, capture: Callable[[], Graph]) -> Graph:
        """The graph of ``key``, captured if there is none. A graph larger than the limit is
        returned but replaces all others."""
        if key not in self._graphs:
            self._graphs[key] = capture()
        self._graphs.move_to_end(key)
        while len(self._graphs) > 1 and (
            len(self._graphs) > self._count or self.size > self._limit
        ):
            self._graphs.popitem(last=False)
        return self._graphs[key]

    def drop(self, owner: object) -> None:
        """Drop the graphs whose key begins with ``owner``."""
        for key in [k for k in self._graphs if isinstance(k, tuple) and k[0] is owner]:
            del self._graphs[key]

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()
