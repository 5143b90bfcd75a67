"""Components in turn, for when not all of them fit: each is loaded when an image comes to it, and
let go before the next.

    text encoders → UNet → VAE (and what looks at the images)

The price is that every image loads them anew. What was bound with an engine refers to it, so
whoever keeps bindings is told to forget them first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kdrt.bundle.components import SHALLOW_UNET
from kdrt_engines import Binding, Engine, EngineSpec

_LATER = {
    "unet": "unet",
    SHALLOW_UNET: "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "safety_checker": "vae",
}


def stage_of(component: str) -> str:
    """The turn of a component: ``text``, ``unet`` or ``vae``."""
    return _LATER.get(component, "text")


class Offloader:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._engines: dict[str, OffloadedEngine] = {}
        self._forget: dict[str, Callable[[], object]] = {}

    def add(self, component: str, engine: OffloadedEngine) -> OffloadedEngine:
        """Let ``engine`` take part."""
        self._engines[component] = engine
        return engine

    def on_release(self, stage: str, forget: Callable[[], object]) -> None:
        """Have ``forget`` called when the turn of a stage is over, to drop its bindings."""
        self._forget[stage] = forget

    def begin(self, stage: str) -> None:
        """The turn of ``stage``: let go of the engines of every other."""
        over = [(name, engine) for name, engine in self._engines.items() if stage_of(name) != stage]
        for left in {stage_of(name) for name, engine in over if engine.is_loaded}:
            self._forget.get(left, lambda: None)()
        for _, engine in over:
            engine.release()
        torch.cuda.empty_cache()  # what torch keeps for itself, other libraries cannot have

    def loaded(self) -> tuple[str, ...]:
        """The components in memory."""
        return tuple(name for name, engine in self._engines.items() if engine.is_loaded)


class OffloadedEngine(Engine):
    """An engine that is loaded when it is bound, and let go when another's turn begins.

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
        """Let go of the engine."""
        self._engine = None

    def bind(self, **dims: int) -> Binding:
        return self._loaded().bind(**dims)

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._loaded().limits()

    def forget(self) -> None:
        if self._engine is not None:
            self._engine.forget()

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
