"""Element types of tensors: their names here, and what PyTorch, ONNX and TensorRT call them.

Importing this does not import torch, so that a manifest can be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: the name in manifests and specs, which is also PyTorch's (``float16``).
        onnx: its number in ``onnx.TensorProto.DataType``.
        tensorrt: its name in ``tensorrt.DataType``.
        size: bytes of an element.
    """

    name: str
    onnx: int
    tensorrt: str
    size: int

    @property
    def torch(self) -> torch.dtype:
        """PyTorch's dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.name)
        return dtype


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float32", 1, "FLOAT", 4),
        DType("float16", 10, "HALF", 2),
        DType("bfloat16", 16, "BF16", 2),
        DType("int64", 7, "INT64", 8),
        DType("int32", 6, "INT32", 4),
        DType("int8", 3, "INT8", 1),
    )
}
"""Every element type that a network may have, by name."""

FROM_ONNX = {dtype.onnx: dtype for dtype in DTYPES.values()}
FROM_TENSORRT = {dtype.tensorrt: dtype for dtype in DTYPES.values()}


def from_torch(dtype: torch.dtype) -> DType:
    """The element type of a PyTorch dtype.

    Raises:
        KeyError: no network has tensors of this dtype.
    """
    return DTYPES[str(dtype).removeprefix("torch.")]
