"""CUDA graphs: work captured once, and launched as one from then on.

A CUDA graph repeats what was enqueued during its capture, at the same addresses. So all memory it
uses must stay allocated for as long as it lives: inputs, outputs, and the
:meth:`workspace <kdrt_engines.base.Binding.workspace>` of bindings.
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
    """Bytes of device memory that the CUDA graph owns."""

    def replay(self) -> None:
        """Enqueue the work on the current stream."""
        ...


class CudaGraph:
    """``work`` captured on ``stream``.

    The work is run once before, uncaptured: what libraries do at their first call (handles,
    workspaces, compiled kernels) cannot happen inside a capture.

    Args:
        work: what to capture; takes nothing and returns nothing.
        stream: a stream that is not the default one.
        workspace: memory that must live as long as the CUDA graph, besides what ``work`` itself
            refers to.

    Raises:
        CaptureError: the work cannot be captured; no capture is left open.
    """

    def __init__(
        self,
        work: Callable[[], None],
        stream: torch.cuda.Stream,
        workspace: Sequence[Tensor] = (),
    ) -> None:
        self._kept_alive = (work, *workspace)
        self._graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()
        torch.cuda.empty_cache()  # as the capture does, or the difference would be too small
        before = torch.cuda.memory_reserved(stream.device)
        try:
            # Other threads, such as one that decodes, may allocate and wait meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
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
"""Most bytes that all CUDA graphs of a pipeline may own."""


class CudaGraphCache:
    """CUDA graphs by key; the least recently used is dropped first.

    Args:
        limit: most bytes that all of them may own.
        count: most CUDA graphs.
    """

    def __init__(self, limit: int = CUDA_GRAPH_MEMORY, count: int = 16) -> None:
        self._limit, self._count = limit, count
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def size(self) -> int:
        """Bytes that all of them own."""
        return sum(graph.size for graph in self._graphs.values())

    def get(self, key: Hashable, capture: Callable[[], Graph]) -> Graph:
        """The CUDA graph of ``key``, captured if there is none. One larger than the limit replaces
        all others."""
        if key not in self._graphs:
            self._graphs[key] = capture()
        self._graphs.move_to_end(key)
        while len(self._graphs) > 1 and (
            len(self._graphs) > self._count or self.size > self._limit
        ):
            self._graphs.popitem(last=False)
        return self._graphs[key]

    def drop(self, owner: object) -> None:
        """Drop those whose key begins with ``owner``."""
        for key in [k for k in self._graphs if isinstance(k, tuple) and k[0] is owner]:
            del self._graphs[key]

    def clear(self) -> None:
        """Drop all."""
        self._graphs.clear()
