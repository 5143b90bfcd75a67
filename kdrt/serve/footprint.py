"""What a model takes of memory: before it was ever loaded from its files, and then as measured."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch

from kdrt.bundle import Bundle
from kdrt.common.memory import resident_memory
from kdrt.common.units import size
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.memory import estimate_memory
from kdrt.serve.settings import ServiceSettings

_logger = logging.getLogger(__name__)

Meter = Callable[[str], int]
"""Bytes that are in use on a device, ``cpu`` or ``cuda``."""


def in_use(device: str) -> int:
    """Bytes in use: on a CPU what this process has, on a GPU what anybody has of it, since the
    engines of TensorRT allocate past PyTorch."""
    if device == "cpu":
        return resident_memory()
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def give_back() -> None:
    """Return what nobody uses any more to the device. Where it refuses that, as a GPU does on which
    something has failed for good, the log says so."""
    gc.collect()  # engines and tensors that hold each other
    try:
        torch.cuda.empty_cache()  # does nothing where CUDA was not used
    except Exception:
        _logger.exception("memory that nobody uses could not be given back")


class Footprint:
    """What one bundle takes of the device that it runs on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        size: bytes; at least the weights and what is known of activations.

    Args:
        bundle: an open bundle.
        settings: how it is loaded.
        meter: measures.

    Raises:
        KdrtError: see `kdrt.pipeline.memory.estimate_memory`.
    """

    def __init__(self, bundle: Bundle, settings: ServiceSettings, meter: Meter = in_use) -> None:
        estimate = estimate_memory(
            bundle, settings.engine, cuda_graph=settings.cuda_graph, ask_device=False
        )
        self.device = estimate.device
        self.size = self._least = estimate.needed
        self._name = bundle.manifest.name
        self._meter = meter
        self._before = 0

    def check(self, budget: int | None) -> None:
        """Raises InvalidRequestError: it is beyond the budget all alone."""
        if budget is not None and self.size > budget:
            raise InvalidRequestError(
                f"the bundle {self._name!r} needs at least {size(self.size)} of memory, and all "
                f"bundles together may have {size(budget)}: give more with --memory, or "
                "leave this bundle out"
            )

    def begin(self) -> None:
        """It is about to be loaded."""
        self._before = self._meter(self.device)

    def end(self) -> None:
        """It is loaded and warm. Memory that another model has left is taken again without a trace
        in the process's size, so no measurement makes it smaller than its estimate."""
        self.size = max(self._least, self._meter(self.device) - self._before)
