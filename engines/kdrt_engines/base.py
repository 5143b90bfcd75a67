"""The contract every backend keeps: an engine binds to sizes, a binding runs at addresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

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

    @abstractmethod
    def bind(self, **dims: int) -> Binding:
        """Allocate inputs and outputs for these sizes, one keyword a symbol of the spec.

        Raises:
            ShapeError: a symbol is missing, or the sizes are outside of what the engine allows.
        """
