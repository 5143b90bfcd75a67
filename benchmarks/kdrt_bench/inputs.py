"""Inputs of networks, the same for every peer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec

NOT_READ = ("freeu",)
"""Inputs of components that the untouched networks have not."""


def read_by_peers(spec: EngineSpec) -> tuple[str, ...]:
    """Names of the inputs that the untouched network has, in order."""
    return tuple(tensor.name for tensor in spec.inputs if tensor.name not in NOT_READ)


def example_inputs(spec: EngineSpec, dims: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs of plausible scale, the same for every peer; FreeU is off."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for tensor in spec.inputs:
        shape = tensor.resolve(dims)
        if tensor.name == "freeu":
            value = torch.ones(shape)
        elif tensor.name == "timestep":
            value = torch.rand(shape, generator=generator) * 999
        elif tensor.name == "time_ids":
            value = torch.randint(0, 1024, shape, generator=generator).float()
        elif tensor.name == "eos_index":
            value = torch.full(shape, dims["L"] - 1)
        else:
            value = torch.randn(shape, generator=generator)
        inputs[tensor.name] = value.to(DTYPES[tensor.dtype].torch)
    return inputs
