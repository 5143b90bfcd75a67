"""The contract of every backend: an engine is bound to sizes, a binding runs at fixed addresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from kdrt_engines.errors import FixedWeightsError
from kdrt_engines.spec import EngineSpec


class Binding(ABC):
    """A network bound to one set of sizes.

    Attributes:
        inputs: tensors by name, whose addresses never change. Callers write into them before
            :meth:`run`; what was written stays, so inputs that do not change are written once.
        outputs: tensors by name, at fixed addresses too; valid until the next run.
    """

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]

    @abstractmethod
    def run(self) -> None:
        """Compute the outputs from the inputs, on the current stream. On CUDA it only enqueues:
        it never allocates and never synchronises."""

    def workspace(self) -> tuple[torch.Tensor, ...]:
        """Memory besides inputs and outputs that an enqueued run uses. A CUDA graph of the run
        needs it for as long as it lives."""
        return ()


class Engine(ABC):
    """A loaded network."""

    spec: EngineSpec
    device: torch.device

    stream: torch.cuda.Stream | None = None
    """The stream that every run is enqueued on; None is the current one."""

    capturable: bool = True
    """Whether callers can capture runs in a CUDA graph. If not, the engine can make its own."""

    neutral_inputs: frozenset[str] = frozenset()
    """Inputs at whose neutral values, in all rows, a smaller network runs. The results of either
    agree within rounding."""

    in_place: bool = False
    """Whether :meth:`with_weights` changes this engine instead of making another."""

    @abstractmethod
    def bind(self, **dims: int) -> Binding:
        """Allocate inputs and outputs for these sizes, one keyword for each symbol of the spec.

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
        take others (see :meth:`allows`). A symbol that is not listed has no limits. Empty unless
        the engine was built for a range of sizes."""
        return {}

    def apart(self) -> Engine:
        """The same network for runs at the same time as others: what it binds shares no memory
        with bindings of other engines."""
        return self

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Engine:
        """The network of the file with some weights replaced.

        The result takes this engine's place: it may be this engine, changed (see
        :attr:`in_place`). Without weights it computes again exactly what was built or exported.
        Bindings of a changed engine stay valid; captured runs must be captured anew.

        Args:
            weights: by the name of the initialiser, in its dtype and shape.

        Raises:
            FixedWeightsError: this kind of engine cannot change its weights; nothing has changed.
            EngineError: they were refused. An engine that changes in place has the weights from
                before, or those of the file.
        """
        raise FixedWeightsError(f"a {type(self).__name__} whose weights are fixed when it is built")
