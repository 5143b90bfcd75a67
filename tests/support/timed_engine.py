"""Engines whose runs take a known time, by a clock that only they move."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch

from kdrt.bundle import Bundle
from kdrt.errors import EngineUnavailableError
from kdrt_engines import Binding, Engine, EngineSpec
from kdrt_engines.torch_eager import allocate


class Clock:
    """Seconds; only :attr:`now` moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedEngine(Engine):
    """Fills its outputs with the sum of its inputs.

    Args:
        spec: what it takes and gives.
        clock: is moved by every run.
        seconds: of each run in turn, over and over.
        factor: of its outputs.
        bindings: gets what is bound.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        spec: EngineSpec,
        clock: Clock,
        seconds: Iterable[float],
        factor: float,
        bindings: list[Binding],
    ) -> None:
        self.spec, self.clock, self.factor, self.bindings = spec, clock, factor, bindings
        self.seconds = itertools.cycle(seconds)

    def bind(self, **dims: int) -> Binding:
        self.bindings.append(_TimedBinding(self, dims))
        return self.bindings[-1]


class _TimedBinding(Binding):
    def __init__(self, engine: TimedEngine, dims: dict[str, int]) -> None:
        self._engine = engine
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)

    def run(self) -> None:
        total = sum(float(tensor.double().sum()) for tensor in self.inputs.values())
        for tensor in self.outputs.values():
            tensor.fill_(total * self._engine.factor)
        self._engine.clock.now += next(self._engine.seconds)


class TimedLoader:
    """Loads timed engines; see :class:`kdrt.backends.loader.Loader`.

    Args:
        bundle: whose components it loads.
        clock: of its engines.
        seconds: of their runs; None if it can load nothing.
        factor: of their outputs.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        bundle: Bundle,
        clock: Clock,
        seconds: Iterable[float] | None,
        factor: float = 1.0,
    ) -> None:
        self._bundle, self._clock, self._seconds, self._factor = bundle, clock, seconds, factor
        self.bindings: list[Binding] = []

    def load(self, component: str) -> Engine:
        if self._seconds is None:
            raise EngineUnavailableError("it is not in this bundle")
        spec = self._bundle.manifest.components[component].spec()
        return TimedEngine(spec, self._clock, self._seconds, self._factor, self.bindings)


Costs = Mapping[str, Iterable[float] | None]
"""Seconds of the runs by engine; None for one that cannot be loaded."""
