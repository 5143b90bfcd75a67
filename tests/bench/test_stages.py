"""Engines that are timed compute what they did before, and everything of it when told to."""

from __future__ import annotations

import torch

from kdrt_bench.stages import StageClock, timed
from kdrt_engines import Binding, Engine, EngineSpec

SPEC = EngineSpec((), ())


class Remembering(Binding):
    """Computes once, and again only after it was invalidated."""

    def __init__(self) -> None:
        self.inputs, self.outputs = {}, {}
        self.computed, self.is_valid = 0, False

    def run(self) -> None:
        self.computed += not self.is_valid
        self.is_valid = True

    def invalidate(self) -> None:
        self.is_valid = False


class Plain(Binding):
    inputs, outputs = {}, {}

    def run(self) -> None: ...


class Bound(Engine):
    spec, device = SPEC, torch.device("cpu")

    def __init__(self, binding: Binding) -> None:
        self.binding = binding

    def bind(self, **dims: int) -> Binding:
        return self.binding


def test_every_binding_of_an_invalidated_engine_computes_anew() -> None:
    inner, clock = Remembering(), StageClock()
    engine = timed({"unet": Bound(inner)}, clock)["unet"]
    binding = engine.bind()
    for _ in range(3):
        binding.run()
    assert inner.computed == 1
    engine.invalidate()
    binding.run()
    assert inner.computed == 2
    assert clock.seconds().keys() == {"denoise"}


def test_bindings_that_remember_nothing_may_be_invalidated() -> None:
    engine = timed({"unet": Bound(Plain())}, StageClock())["unet"]
    engine.bind().run()
    engine.invalidate()
