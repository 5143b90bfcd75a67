"""Torch tensors as OpenVINO's, in the same memory."""

from __future__ import annotations

import torch

from kdrt_engines.openvino.quiet import ov

_TYPES = {
    torch.float32: ov.Type.f32,
    torch.float16: ov.Type.f16,
    torch.bfloat16: ov.Type.bf16,
    torch.int64: ov.Type.i64,
    torch.int32: ov.Type.i32,
    torch.int8: ov.Type.i8,
}


def shared(tensor: torch.Tensor) -> ov.Tensor:
    """An OpenVINO tensor in the memory of a contiguous tensor on the CPU. It keeps that alive."""
    if tensor.dtype is torch.bfloat16:
        # NumPy has no bfloat16: the bits travel as integers of the same size.
        array = tensor.view(torch.int16).numpy()
        return ov.Tensor(array, ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def type_of(dtype: torch.dtype) -> ov.Type:
    """OpenVINO's name of an element type.

    Raises:
        KeyError: no network has tensors of this dtype.
    """
    return _TYPES[dtype]
