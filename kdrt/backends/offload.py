"""Offloading, for when not all components fit into memory: each is loaded at its stage of an image,
and freed before the next.

    text encoders → UNet → VAE (and the safety checker)

The price is that every image loads them anew. Bindings keep their engine in memory, so whoever has
some drops them when their stage ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kdrt.backends.loader import Loader
from kdrt.backends.stages import stage_of
from kdrt.bundle import Bundle
from kdrt_engines import Binding, Engine, EngineSpec


class Offloader:
    """Keeps the engines of one stage in memory."""

    def __init__(self) -> None:
        self._engines: dict[str, OffloadedEngine] = {}
        self._on_release: dict[str, Callable[[], object]] = {}

    def add(self, component: str, engine: OffloadedEngine) -> None:
        """Manage ``engine``."""
        self._engines[component] = engine

    def on_release(self, stage: str, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the engines of a stage are about to be freed, to drop what was
        bound with them."""
        self._on_release[stage] = callback

    def begin(self, stage: str) -> None:
        """Free the engines of every other stage."""
        others = [
            (name, engine) for name, engine in self._engines.items() if stage_of(name) != stage
        ]
        for ended in {stage_of(name) for name, engine in others if engine.is_loaded}:
            if ended in self._on_release:
                self._on_release[ended]()
        for _, engine in others:
            engine.release()
        torch.cuda.empty_cache()  # other libraries cannot use memory that torch caches

    def loaded(self) -> tuple[str, ...]:
        """The components in memory."""
        return tuple(name for name, engine in self._engines.items() if engine.is_loaded)


class OffloadedEngine(Engine):
    """An engine that is loaded when it is bound, and freed when another stage begins.

    Args:
        offloader: of the pipeline.
        component: its name in the manifest.
        spec: of the component.
        device: where it will run.
        load: loads it.
    """

    in_place = True

    def __init__(
        self,
        offloader: Offloader,
        component: str,
        spec: EngineSpec,
        device: torch.device,
        load: Callable[[], Engine],
    ) -> None:
        self.spec, self.device = spec, device
        self._offloader, self._stage, self._load = offloader, stage_of(component), load
        self._engine: Engine | None = None
        self._weights: Mapping[str, torch.Tensor] = {}
        offloader.add(component, self)

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    def release(self) -> None:
        """Free the engine."""
        self._engine = None

    def bind(self, **dims: int) -> Binding:
        return self._loaded().bind(**dims)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._loaded().limits()

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> OffloadedEngine:
        """As the engine's own; the weights are put in again whenever it is loaded."""
        self._engine = self._loaded().with_weights(weights)
        self._weights = dict(weights)
        return self

    def _loaded(self) -> Engine:
        if self._engine is None:
            self._offloader.begin(self._stage)
            engine = self._load()
            self._engine = engine.with_weights(self._weights) if self._weights else engine
            self.device = self._engine.device
        return self._engine


class OffloadLoader:
    """Wraps every engine of another loader in an :class:`OffloadedEngine`, and loads nothing yet.
    See :class:`kdrt.backends.loader.Loader`.

    Args:
        bundle: whose components they are.
        loader: loads the engines.
        offloader: decides which of them are in memory.
    """

    def __init__(self, bundle: Bundle, loader: Loader, offloader: Offloader) -> None:
        self._components = bundle.manifest.components
        self._loader, self._offloader, self.device = loader, offloader, loader.device

    def load(self, component: str) -> OffloadedEngine:
        return OffloadedEngine(
            self._offloader,
            component,
            self._components[component].spec(),
            self.device,
            lambda: self._loader.load(component),
        )
