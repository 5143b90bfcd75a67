"""A second engine for what the chosen one cannot run, always with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch

from kdrt.backends.loader import Loader
from kdrt.errors import (
    EngineError,
    EngineRejectedError,
    EngineUnavailableError,
    ShapeError,
)
from kdrt_engines import Binding, Engine, FixedWeightsError


class FallbackWarning(UserWarning):
    """A component runs on another engine than the one chosen."""


def warn_of_fallback(component: str, fallback: str, reason: Exception) -> None:
    """Warn that a component runs on the fallback, and why."""
    warnings.warn(f"{component} runs on {fallback}: {reason}", FallbackWarning, stacklevel=2)


class FallbackLoader:
    """Loads components with one loader, and with another what the first cannot load; see
    :class:`kdrt.backends.loader.Loader`. An engine that is limited to some sizes gets the other
    for the rest.

    Args:
        loader: of the chosen engine.
        fallback: the other engine's name.
        make_fallback: makes its loader, when it is first needed: the machine may lack what that
            engine needs.
    """

    def __init__(self, loader: Loader, fallback: str, make_fallback: Callable[[], Loader]) -> None:
        self._loader, self.device = loader, loader.device
        self._name, self._make_fallback = fallback, cache(make_fallback)

    def load(self, component: str) -> Engine:
        try:
            engine = self._loader.load(component)
        except (EngineRejectedError, EngineUnavailableError) as error:
            warn_of_fallback(component, self._name, error)
            return self._load_fallback(component)
        if not engine.limits():
            return engine
        return FallbackEngine(engine, component, self._name, lambda: self._load_fallback(component))

    def _load_fallback(self, component: str) -> Engine:
        return self._make_fallback().load(component)


class FallbackEngine(Engine):
    """A built engine, and another that takes the sizes it was not built for.

    Args:
        engine: the built one.
        component: its name in the manifest.
        fallback: the other's name.
        load: loads the other, when it is first needed.
        weights: those of ``engine`` that are not its file's.
    """

    def __init__(
        self,
        engine: Engine,
        component: str,
        fallback: str,
        load: Callable[[], Engine],
        weights: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.spec, self.device = engine.spec, engine.device
        self.stream, self.capturable = engine.stream, engine.capturable
        self.in_place = engine.in_place
        self._engine, self._load = engine, load
        self._component, self._fallback = component, fallback
        self._other: Engine | None = None
        self._weights = weights

    def bind(self, **dims: int) -> Binding:
        """Bind the built engine, or else the other.

        Raises:
            ShapeError: neither takes these sizes, or the other runs on another device than the
                pipeline.
            EngineError: the other cannot take the weights that this engine was given.
        """
        try:
            return self._engine.bind(**dims)
        except ShapeError as error:
            other = self._loaded()
            if other.device.type != self.device.type:
                raise ShapeError(
                    f"{error}; the fallback {self._fallback} runs on {other.device.type}, "
                    f"and this pipeline on {self.device.type}"
                ) from error
            warn_of_fallback(self._component, self._fallback, error)
            return other.bind(**dims)

    def allows(self, **dims: int) -> bool:
        return self._engine.allows(**dims)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._engine.limits()

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> FallbackEngine:
        """As the built engine's own. The other gets the same weights, now or when it is loaded."""
        engine = self._engine.with_weights(weights)
        if engine is not self._engine:
            return FallbackEngine(engine, self._component, self._fallback, self._load, weights)
        self._weights = weights
        other, self._other = self._other, None  # if it refuses, it is loaded anew
        if other is not None:
            self._other = self._with_own_weights(other)
        return self

    def _loaded(self) -> Engine:
        if self._other is None:
            other = self._load()
            self._other = self._with_own_weights(other) if self._weights else other
        return self._other

    def _with_own_weights(self, other: Engine) -> Engine:
        try:
            return other.with_weights(self._weights)
        except FixedWeightsError as error:
            raise EngineError(
                f"the fallback {self._fallback} of {self._component} cannot take the LoRAs in "
                f"use, being {error}: unload them, or choose another fallback"
            ) from error
