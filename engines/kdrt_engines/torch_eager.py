"""Eager PyTorch behind the engine contract: the reference, and the benchmark baseline."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import EngineError
from kdrt_engines.spec import DTYPES, EngineSpec, TensorSpec


def allocate(
    tensors: tuple[TensorSpec, ...], dims: dict[str, int], device: torch.device
) -> dict[str, torch.Tensor]:
    """Zeroed tensors for these specs and sizes."""
    return {
        t.name: torch.zeros(t.resolve(dims), dtype=DTYPES[t.dtype], device=device) for t in tensors
    }


class TorchEngine(Engine):
    """Any module whose ``forward`` takes the spec's inputs in order and returns its outputs (a
    tensor, or a tuple in order)."""

    def __init__(
        self, module: torch.nn.Module, spec: EngineSpec, device: torch.device | str = "cpu"
    ) -> None:
        self.module = module.to(device).eval()
        self.spec = spec
        self.device = torch.device(device)
        self._replaced: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> TorchEngine:
        """This engine, its weights overwritten in place: bindings and captured graphs stay
        valid. What was there before is kept, and put back by a later call."""
        state = _weights_by_name(self.module)
        unknown = [name for name in weights if name not in state]
        if unknown:
            raise EngineError(
                f"this torch program has no weight {unknown[0]}; export the model again"
            )
        for name, tensor in self._replaced.items():
            state[name].copy_(tensor)
        self._replaced = {name: state[name].clone() for name in weights}
        for name, tensor in weights.items():
            state[name].copy_(tensor)
        return self

    def bind(self, **dims: int) -> TorchBinding:
        return TorchBinding(self, dims)


class TorchBinding(Binding):
    def __init__(self, engine: TorchEngine, dims: dict[str, int]) -> None:
        self._module = engine.module
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)

    @torch.inference_mode()
    def run(self) -> None:
        results = self._module(*self.inputs.values())
        if isinstance(results, torch.Tensor):
            results = (results,)
        for target, result in zip(self.outputs.values(), results, strict=True):
            target.copy_(result)


def _weights_by_name(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, by the names they have in the ONNX file: without the names of the
    modules that an exported program is wrapped in."""
    return {
        name.removeprefix("program.").removeprefix("component."): tensor
        for name, tensor in module.state_dict().items()
    }
