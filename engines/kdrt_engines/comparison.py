"""How far apart two engines of one network are on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdrt_engines.base import Binding
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec

BOUNDS = {"float32": 5e-3, "float16": 1e-2}
"""Largest relative error between two engines of one network that compute alike, by the coarsest
dtype of its inputs and outputs. Their kernels round and sum in other orders, in float32 perhaps as
TF32. What float16 does to the weights of a UNet alone is 9e-4."""


def relative_error(out: Tensor, reference: Tensor) -> float:
    """``‖out − reference‖ / ‖reference‖``, in float64; infinite where one is not finite."""
    out, reference = out.double().cpu(), reference.double().cpu()
    distance, size = float((out - reference).norm()), float(reference.norm())
    if distance == 0:
        return 0.0
    return distance / size if math.isfinite(distance) and 0 < size < math.inf else math.inf


def greatest_error(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The :func:`relative_error` of the output that is furthest off."""
    return max(relative_error(outputs[name], tensor) for name, tensor in expected.items())


def bound_of(spec: EngineSpec) -> float:
    """The largest relative error that ``BOUNDS`` allows for a network."""
    dtypes = {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    return max(BOUNDS[dtype] for dtype in dtypes if dtype in BOUNDS)


def random_inputs(spec: EngineSpec, dims: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """All inputs of a network, on the CPU: normally distributed numbers, indices 0."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for tensor in spec.inputs:
        dtype, shape = DTYPES[tensor.dtype].torch, tensor.resolve(dims)
        inputs[tensor.name] = (
            torch.randn(shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.zeros(shape, dtype=dtype)
        )
    return inputs


def results(binding: Binding, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run once, and copy the outputs to the CPU."""
    for name, tensor in inputs.items():
        binding.inputs[name].copy_(tensor)
    binding.run()
    return {name: tensor.to("cpu", copy=True) for name, tensor in binding.outputs.items()}
