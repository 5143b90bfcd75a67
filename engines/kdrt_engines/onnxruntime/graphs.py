"""The ONNX files that one component is computed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class OrtGraph:
    """A network in an ONNX file.

    Attributes:
        path: the file.
        optimized: the same as ONNX Runtime optimised it for this machine, if that was kept (see
            :func:`kdrt_engines.onnxruntime.sessions.save_optimized`).
    """

    path: Path
    optimized: Path | None = None


@dataclass(frozen=True)
class ReducedGraph:
    """A graph that computes the same as the whole one with less work, at certain sizes and while
    some inputs hold certain values.

    Attributes:
        graph: the smaller graph; it does not read those inputs.
        neutral: the values, by input; of one with a row for each image, those of every row.
        multiples: what each symbol's size must be divisible by.
    """

    graph: OrtGraph
    neutral: Mapping[str, tuple[float, ...]]
    multiples: Mapping[str, int] = field(default_factory=dict)

    def fits(self, dims: Mapping[str, int]) -> bool:
        """Whether it computes these sizes."""
        return all(dims.get(s, 0) % divisor == 0 for s, divisor in self.multiples.items())


@dataclass(frozen=True)
class OrtNetwork:
    """Every graph of a component.

    Attributes:
        whole: computes the component for all sizes and inputs.
        reduced: computes it with less work for the usual ones. CPU only.
        invariants: computes further inputs of both graphs from inputs that rarely change, such as
            the keys and values of the prompt. CPU only.
    """

    whole: OrtGraph
    reduced: ReducedGraph | None = None
    invariants: OrtGraph | None = None

    @property
    def usual(self) -> OrtGraph:
        """The graph that most runs use."""
        return self.whole if self.reduced is None else self.reduced.graph
