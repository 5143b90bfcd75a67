"""Eager PyTorch behind the engine contract: the reference, and the baseline of benchmarks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.errors import EngineError
from kdrt_engines.spec import EngineSpec, TensorSpec

ALIGNMENT = 64
"""Bytes that PyTorch aligns its own allocations to."""

PLACES = "places.json"
"""In an exported program: by parameter, its address modulo ``ALIGNMENT`` when it was exported."""


def load_program(path: Path, device: torch.device | str = "cpu") -> torch.nn.Module:
    """An exported program as a module that, on a CPU, computes the bits of the network it was made
    from.

    Two things besides the operations decide the bits. Kernels on a CPU sum in an order that depends
    on the alignment of weights, and those of a checkpoint are aligned as in its file. And
    ``linear`` takes another path for weights that require no gradient, while those of a freshly
    loaded network do.
    """
    extra = {PLACES: ""}
    program = torch.export.load(path, extra_files=extra)
    if torch.device(device).type == "cuda":
        from torch.export.passes import move_to_device_pass

        # Traced on a CPU, it creates tensors there, which moving a module does not change.
        program = move_to_device_pass(program, device)
    # torch.export refuses sizes that it specialised on while tracing, such as a side of 1 in the
    # deepest block. The operations are right for those too.
    guards = "check_guards" in inspect.signature(program.module).parameters  # since torch 2.9
    exported: Any = program.module(**({"check_guards": False} if guards else {}))
    exported.validate_inputs = False
    module: torch.nn.Module = exported
    places = json.loads(extra[PLACES] or "{}")
    for name, parameter in module.named_parameters():
        if parameter.device.type == "cpu":
            parameter.data = _placed(parameter.data, places.get(name, 0))
        parameter.requires_grad_(True)
    return module


def _placed(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """A contiguous tensor, moved so that its address is ``place`` modulo ``ALIGNMENT``."""
    size = tensor.element_size()
    if tensor.data_ptr() % ALIGNMENT == place or place % size or not tensor.is_contiguous():
        return tensor
    room = tensor.new_empty(tensor.numel() + ALIGNMENT // size)
    skip = (place - room.data_ptr()) % ALIGNMENT // size
    return room[skip : skip + tensor.numel()].view(tensor.shape).copy_(tensor)


def allocate(
    tensors: tuple[TensorSpec, ...], dims: dict[str, int], device: torch.device
) -> dict[str, torch.Tensor]:
    """Zeroed tensors for these specs and sizes."""
    return {
        t.name: torch.zeros(t.resolve(dims), dtype=DTYPES[t.dtype].torch, device=device)
        for t in tensors
    }


class TorchEngine(Engine):
    """Any module whose ``forward`` takes the spec's inputs in order and returns its outputs (a
    tensor, or a tuple in order)."""

    in_place = True

    def __init__(
        self, module: torch.nn.Module, spec: EngineSpec, device: torch.device | str = "cpu"
    ) -> None:
        self.module = module.to(device).eval()
        self.spec = spec
        self.device = torch.device(device)
        self._replaced: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> TorchEngine:
        """This engine, its weights overwritten in place: bindings and captured CUDA graphs stay
        valid. The weights from before are kept, and restored by a later call."""
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
