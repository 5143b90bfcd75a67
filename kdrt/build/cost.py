"""What building an engine costs: memory and time, estimated from the size of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from kdrt.bundle import Bundle

_MEMORY_FOR_WEIGHTS = 3.5
"""Peak memory of a build, in sizes of the weights: 2.7 to 3.5 were measured."""

_SECONDS_PER_GRAPH_BYTE = 33e-6
_SECONDS_PER_WEIGHT_BYTE = 18e-9
"""Measured on one core of one machine; :class:`BuildClock` corrects by the builds it has seen."""

_COMPILING = "Determining refit engines"
"""What TensorRT calls the phase that takes nearly all of the time."""


@dataclass(frozen=True)
class NetworkSize:
    """Bytes of a network's graph and of its weights."""

    graph: int
    weights: int

    @classmethod
    def of(cls, bundle: Bundle, component: str) -> NetworkSize:
        """The size of a component."""
        onnx = bundle.file(bundle.manifest.components[component].onnx)
        graph = onnx.stat().st_size
        total = sum(file.stat().st_size for file in onnx.parent.iterdir() if file.is_file())
        return cls(graph, total - graph)


def memory_warning(component: str, size: NetworkSize) -> str | None:
    """The warning that a build needs more memory than is free; else None."""
    needed = _MEMORY_FOR_WEIGHTS * size.weights
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"building {component} takes about {needed / 1e9:.0f} GB of memory, and "
        f"{free / 1e9:.0f} GB are free"
    )


class BuildClock:
    """Estimates how long a build will still take."""

    def __init__(self) -> None:
        self._pace = 1.0
        self._expected = 0.0
        self._started = 0.0

    def start(self, size: NetworkSize) -> None:
        """A build of a network of this size begins."""
        self._expected = (
            _SECONDS_PER_GRAPH_BYTE * size.graph + _SECONDS_PER_WEIGHT_BYTE * size.weights
        )
        self._started = time.perf_counter()

    def stop(self, seconds: float) -> None:
        """It took so long."""
        self._pace = seconds / self._expected

    def left(self, phase: str) -> str:
        """The builder's phase with the time left, once there is an estimate of a second or more."""
        left = self._pace * self._expected - (time.perf_counter() - self._started)
        phase = "compiling" if phase == _COMPILING else phase.lower()
        return f"{phase}, about {left:.0f} s left" if left >= 1 else phase
