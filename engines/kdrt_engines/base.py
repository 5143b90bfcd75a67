"""The contract every backend keeps: an engine binds to sizes, a binding runs at addresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from kdrt_engines.errors import FixedWeightsError
from kdrt_engines.spec import EngineSpec


class Binding(ABC):
    """A network bound to one set of sizes.

    ``inputs`` and ``outputs`` are tensors whose addresses never change: callers write into the
    inputs, call :meth:`run`, and read the outputs. Whatever was written stays until it is
    overwritten, so inputs that do not change between calls are written once.
    """

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]

    @abstractmethod
    def run(self) -> None:
        """Compute the outputs from the inputs, on the current stream. On CUDA it only enqueues:
        it never allocates and never synchronises."""

    def held(self) -> tuple[torch.Tensor, ...]:
        """Memory besides inputs and outputs that an enqueued run uses. Who captures a run in a
        CUDA graph must keep it for as long as the graph."""
        return ()


class Engine(ABC):
    """A loaded network."""

    spec: EngineSpec
    device: torch.device

    stream: torch.cuda.Stream | None = None
    """The one stream that runs are enqueued on, whatever the current one is; None is any."""

    capturable: bool = True
    """Whether a caller can capture runs in a CUDA graph. Where not, the engine makes its own."""

    in_place: bool = False
    """Whether :meth:`with_weights` changes this very engine."""

    @abstractmethod
    def bind(self, **dims: int) -> Binding:
        """Allocate inputs and outputs for these sizes, one keyword a symbol of the spec.

        Raises:
            ShapeError: a symbol is missing, or the sizes are outside of what the engine allows.
        """

    def allows(self, **dims: int) -> bool:
        """Whether :meth:`bind` takes these sizes, as far as that is known beforehand."""
        limits = self.limits()
        return all(
            limits[symbol][0] <= size <= limits[symbol][1]
            for symbol, size in dims.items()
            if symbol in limits
        )

    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Least and greatest size of each symbol: :meth:`bind` takes all sizes within, and may
        take others (see :meth:`allows`). What is not listed is not limited. Empty unless an
        engine was built for a range of sizes."""
        return {}

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Engine:
        """This network as it is in its file, except for some weights.

        The result takes this engine's place: it may be this very engine, changed. With no
        weights it computes again exactly what was built or exported. What was bound of a changed
        engine stays valid; runs that were captured must be captured anew.

        Args:
            weights: by the name of the initialiser, in its dtype and shape.

        Raises:
            FixedWeightsError: those of this kind of engine cannot change; nothing has.
            EngineError: they were refused. An engine that changes in place holds what it held
                before, or what was built or exported.
        """
        raise FixedWeightsError(f"a {type(self).__name__} whose weights are fixed when it is built")
