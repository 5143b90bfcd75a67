"""Sessions bound to tensors by address."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime as ort
import torch

from kdrt_engines.dtypes import from_torch


def bind_tensors(
    session: ort.InferenceSession,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> ort.IOBinding:
    """A session at the addresses of these tensors. Inputs that it does not read are left out: a
    UNet without time conditioning has one too many."""
    io = session.io_binding()
    used = {value.name for value in session.get_inputs()}
    for name, tensor in inputs.items():
        if name in used:
            io.bind_input(*_address(name, tensor))
    for name, tensor in outputs.items():
        io.bind_output(*_address(name, tensor))
    return io


def _address(name: str, tensor: torch.Tensor) -> tuple[str, str, int, int, list[int], int]:
    device = tensor.device
    return (
        name,
        device.type,
        device.index or 0,
        from_torch(tensor.dtype).onnx,
        list(tensor.shape),
        tensor.data_ptr(),
    )
