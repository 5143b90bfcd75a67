"""Operations that export as one node each.

Reshapes: the tracer records ``x.reshape(x.shape[0], -1, heads, dim)`` as a dozen nodes of shape
arithmetic, at hundreds of sites. ONNX's ``Reshape`` can say "keep this size" (a 0) itself. These
functions compute the same in PyTorch and emit that node when traced.

Markers, of the domain ``kdrt``: what the readers of ONNX want in different words, and each gets in
its own (see `kdrt_export.dialects`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from onnx_ir.tensor_adapters import from_torch_dtype

MARKERS = "kdrt"
"""The domain of markers; none is left in a file."""


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


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    head_dim: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-head scaled dot-product attention over [B, L, heads·head_dim] tensors; ``mask`` [L, M]
    is added to the scores [B, heads, L, M]. Traced, it is one marker."""
    if torch.onnx.is_in_onnx_export():
        attended: torch.Tensor = _Attention.apply(
            query, key, value, heads, head_dim, mask, int(from_torch_dtype(query.dtype))
        )
        return attended
    return _attend(query, key, value, heads, head_dim, mask)


def optional(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """``after``, which an input of the network can make equal to ``before``. Traced, it is a
    marker: a graph for the case that it does need not compute what lies between."""
    if not torch.onnx.is_in_onnx_export():
        return after
    marked: torch.Tensor = _Optional.apply(before, after)
    return marked


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    head_dim: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    query, key, value = (split_heads(t, heads, head_dim) for t in (query, key, value))
    return merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, *arguments: Any) -> torch.Tensor:
        return _attend(*arguments[:-1])  # PyTorch knows the dtype

    @staticmethod
    def symbolic(
        graph: Any,
        query: Any,
        key: Any,
        value: Any,
        heads: int,
        head_dim: int,
        mask: Any,
        dtype: int,
    ) -> Any:
        inputs = [query, key, value] if mask is None else [query, key, value, mask]
        marker = graph.op(
            f"{MARKERS}::Attention", *inputs, heads_i=heads, head_dim_i=head_dim, dtype_i=dtype
        )
        marker.setType(query.type())
        return marker


class _Optional(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return after.clone()

    @staticmethod
    def symbolic(graph: Any, before: Any, after: Any) -> Any:
        marker = graph.op(f"{MARKERS}::Optional", before, after)
        marker.setType(after.type())
        return marker
