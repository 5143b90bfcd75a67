"""Reshapes that export as one ONNX node each.

The tracer records ``x.reshape(x.shape[0], -1, heads, dim)`` as a dozen nodes of shape
arithmetic, at hundreds of sites. ONNX's ``Reshape`` can say "keep this size" (a 0) itself. These
functions compute the same in PyTorch and emit that node when traced.
"""

from __future__ import annotations

from typing import Any

import torch


def split_heads(x: torch.Tensor, heads: int, head_dim: int) -> torch.Tensor:
    """[B, L, heads·head_dim] → [B, heads, L, head_dim]."""
    return _Reshape.apply(x, (0, -1, heads, head_dim)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[B, heads, L, head_dim] → [B, L, heads·head_dim]."""
    width = int(x.shape[1]) * int(x.shape[3])
    return _Reshape.apply(x.transpose(1, 2), (0, -1, width))


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] → [B, H·W, C]."""
    return _Reshape.apply(x, (0, int(x.shape[1]), -1)).transpose(1, 2)


def to_image(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B, H·W, C] → the shape of ``like``, [B, C, H, W]."""
    return tokens.transpose(1, 2).reshape_as(like)


class _Reshape(torch.autograd.Function):
    """Reshape where 0 keeps a size, as in ONNX."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(graph: Any, x: Any, shape: tuple[int, ...]) -> Any:
        target = graph.op("Constant", value_t=torch.tensor(shape))
        return graph.op("Reshape", x, target)
