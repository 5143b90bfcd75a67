"""The contract of what loads engines."""

from __future__ import annotations

import logging
import time
from typing import Protocol

import torch

from kdrt_engines import Engine

_logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Loads the components of one bundle for one engine."""

    device: torch.device
    """Where they run."""

    def load(self, component: str) -> Engine:
        """Load a component, by its name in the manifest, with the weights of the bundle.

        Raises:
            EngineUnavailableError: the engine is not in this bundle, or cannot run this component.
            EngineRejectedError: a built engine is missing, or must not be used.
            EngineError: a file cannot be loaded.
        """
        ...


class LoggingLoader:
    """Loads with another loader, and logs what it loaded and how long that took.

    Args:
        loader: the other loader.
        engine: the name of its engine.
    """

    def __init__(self, loader: Loader, engine: str) -> None:
        self._loader, self.device, self._engine = loader, loader.device, engine

    def load(self, component: str) -> Engine:
        started = time.perf_counter()
        loaded = self._loader.load(component)
        seconds = time.perf_counter() - started
        _logger.info(
            "loaded %s with %s on %s in %.3f s", component, self._engine, loaded.device, seconds
        )
        return loaded
