"""Another engine for what the chosen one cannot do, never in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch

from kdrt.errors import ShapeError
from kdrt_engines import Binding, Engine


class FallbackWarning(UserWarning):
    """A component runs on another engine than the one chosen."""


def warn_of_fallback(component: str, fallback: str, reason: Exception) -> None:
    """Say that, and why."""
    warnings.warn(f"{component} runs on {fallback}: {reason}", FallbackWarning, stacklevel=2)


class FallbackEngine(Engine):
    """A built engine, and another that takes the sizes it was not built for.

    Args:
        engine: the built one.
        component: its name in the manifest.
        fallback: the other's name.
        load: loads the other, when it is first needed.
    """

    def __init__(
        self, engine: Engine, component: str, fallback: str, load: Callable[[], Engine]
    ) -> None:
        self.spec, self.device = engine.spec, engine.device
        self.stream, self.capturable = engine.stream, engine.capturable
        self.in_place = engine.in_place
        self._engine, self._load = engine, load
        self._component, self._fallback = component, fallback
        self._other: Engine | None = None

    def bind(self, **dims: int) -> Binding:
        """As either.

        Raises:
            ShapeError: neither takes these sizes, or the other runs on another device, where the
                pipeline is not.
        """
        try:
            return self._engine.bind(**dims)
        except ShapeError as error:
            if self._other is None:
                self._other = self._load()
            if self._other.device.type != self.device.type:
                raise ShapeError(
                    f"{error}; the fallback {self._fallback} runs on {self._other.device.type}, "
                    f"and this pipeline on {self.device.type}"
                ) from error
            warn_of_fallback(self._component, self._fallback, error)
            return self._other.bind(**dims)

    def allows(self, **dims: int) -> bool:
        return self._engine.allows(**dims)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._engine.limits()

    def forget(self) -> None:
        for engine in filter(None, (self._engine, self._other)):
            engine.forget()

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Engine:
        return self._engine.with_weights(weights)
