"""A fallback computes what the engine it stands in for would: with the same weights."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from kdrt.backends.fallback import FallbackEngine, FallbackWarning
from kdrt.errors import EngineError, ShapeError
from kdrt_engines import Engine, EngineSpec, FixedWeightsError, TensorSpec
from kdrt_engines.torch_eager import TorchBinding, TorchEngine

SPEC = EngineSpec((TensorSpec("x", "float32", ("B",)),), (TensorSpec("y", "float32", ("B",)),))
BUILT_FOR = 2


class Scaled(torch.nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([factor]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Built(TorchEngine):
    """Takes small batches only."""

    def bind(self, **dims: int) -> TorchBinding:
        if dims["B"] > BUILT_FOR:
            raise ShapeError(f"no optimization profile takes B={dims['B']}")
        return super().bind(**dims)


class BuiltAnew(Built):
    """The same, whose weights are given to a new engine."""

    in_place = False

    def with_weights(self, weights: Mapping[str, Tensor]) -> BuiltAnew:
        engine = BuiltAnew(Scaled(), SPEC)
        TorchEngine.with_weights(engine, weights)
        return engine


class Fixed(TorchEngine):
    def with_weights(self, weights: Mapping[str, Tensor]) -> TorchEngine:
        raise FixedWeightsError("a plan whose weights are fixed")


def result(engine: Engine, batch: int) -> float:
    binding = engine.bind(B=batch)
    binding.inputs["x"].fill_(1)
    binding.run()
    return float(binding.outputs["y"][0])


def of_both(engine: Engine) -> tuple[float, float]:
    with pytest.warns(FallbackWarning, match="unet runs on torch"):
        return result(engine, BUILT_FOR), result(engine, BUILT_FOR + 1)


@pytest.mark.parametrize("kind", [Built, BuiltAnew])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_the_fallback_has_the_weights_too(kind: type[Built], loaded_before: bool) -> None:
    first = FallbackEngine(
        kind(Scaled(), SPEC), "unet", "torch", lambda: TorchEngine(Scaled(), SPEC)
    )
    if loaded_before:
        assert of_both(first) == (1, 1)
    changed = first.with_weights({"factor": torch.tensor([3.0])})
    assert of_both(changed) == (3, 3)
    assert of_both(changed.with_weights({"factor": torch.tensor([5.0])})) == (5, 5)
    if not first.in_place:
        assert of_both(first) == (1, 1), "it stays usable"
    assert of_both(changed.with_weights({})) == (1, 1), "exactly what was exported"


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_fallback_that_cannot_change_says_so(loaded_before: bool) -> None:
    engine = FallbackEngine(Built(Scaled(), SPEC), "unet", "torch", lambda: Fixed(Scaled(), SPEC))
    if loaded_before:
        assert of_both(engine) == (1, 1)
        with pytest.raises(EngineError, match="the fallback torch of unet cannot take the LoRAs"):
            engine.with_weights({"factor": torch.tensor([3.0])})
    else:
        engine.with_weights({"factor": torch.tensor([3.0])})
    assert result(engine, BUILT_FOR) == 3
    with pytest.raises(EngineError, match="unload them, or choose another fallback"):
        result(engine, BUILT_FOR + 1)
