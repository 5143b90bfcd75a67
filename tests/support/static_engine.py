"""An engine whose runs allocate nothing, as the contract of `kdrt_engines.Binding` asks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdrt_engines import Binding, Engine, EngineSpec
from kdrt_engines.torch_eager import allocate


class StaticEngine(Engine):
    """Predicts half of its sample, whatever else it is told; hands out its sample as deep feature
    where the spec has one. One that predicts nothing does nothing."""

    device = torch.device("cpu")

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def bind(self, **dims: int) -> Binding:
        inputs = allocate(self.spec.inputs, dims, self.device)
        return _StaticBinding(inputs, allocate(self.spec.outputs, dims, self.device))


class _StaticBinding(Binding):
    def __init__(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        if "noise_pred" in outputs:
            channels = outputs["noise_pred"].shape[1]
            self._sample = inputs["sample"][:, :channels]

    def run(self) -> None:
        if "noise_pred" not in self.outputs:
            return
        prediction = self.outputs["noise_pred"].copy_(self._sample)
        prediction.sub_(prediction, alpha=0.5)
        if "deep_feature" in self.outputs:
            self.outputs["deep_feature"].copy_(self._sample)
