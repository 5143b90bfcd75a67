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
        inputs: tensors by name, at addresses that never change. Callers write into them before
            :meth:`run`. What is written stays, so an input that does not change is written once.
        outputs: tensors by name, also at fixed addresses; valid until the next run.
    """

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]

    @abstractmethod
    def run(self) -> None:
        """Compute the outputs from the inputs, on the current stream. On CUDA this only enqueues
        work: it never allocates and never synchronises."""

    def workspace(self) -> tuple[torch.Tensor, ...]:
        """Memory that an enqueued run uses in addition to inputs and outputs. A CUDA graph of the
        run must keep it alive."""
        return ()


class Engine(ABC):
    """A loaded network.

    Attributes:
        spec: the inputs and outputs of the network.
        device: where the network runs, and where its tensors are.
    """

    spec: EngineSpec
    device: torch.device

    stream: torch.cuda.Stream | None = None
    """The stream that every run is enqueued on; None is the current stream."""

    capturable: bool = True
    """Whether callers can capture runs in a CUDA graph. If not, the engine can make its own."""

    neutral_inputs: frozenset[str] = frozenset()
    """Inputs with a neutral value. If all rows have that value, a smaller network runs; its results
    agree with those of the whole network within rounding."""

    in_place: bool = False
    """Whether :meth:`with_weights` changes this engine instead of making another."""

    @abstractmethod
    def bind(self, **dims: int) -> Binding:
        """Allocate inputs and outputs for these sizes: one keyword for each symbol of the spec.

        Raises:
            ShapeError: a symbol is missing, or the engine does not allow these sizes.
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
        """The smallest and the largest size of each symbol. :meth:`bind` takes all sizes in that
        range, and may take others (see :meth:`allows`). A symbol that is not listed has no limits.
        Empty unless the engine was built for a range of sizes."""
        return {}

    def apart(self) -> Engine:
        """The same network, for runs that overlap with others: its bindings share no memory with
        bindings of other engines."""
        return self

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Engine:
        """The network of the file, with some weights replaced.

        The result replaces this engine. It may be this engine itself, changed (see
        :attr:`in_place`). With an empty mapping it again computes exactly what was built or
        exported. Bindings of a changed engine stay valid; captured runs must be captured again.

        Args:
            weights: by the name of the initialiser, in its dtype and shape.

        Raises:
            FixedWeightsError: this kind of engine cannot change its weights; nothing has changed.
            EngineError: the weights were refused. An engine that changes in place then has its
                previous weights, or those of the file.
        """
        raise FixedWeightsError(f"a {type(self).__name__} whose weights are fixed when it is built")
