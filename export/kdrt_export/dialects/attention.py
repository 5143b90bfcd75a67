"""Attention, spelled out for everybody or as ONNX Runtime's one operator.

A marker ``kdrt.Attention`` takes query, key and value ``[B, L, heads·head_dim]``, and perhaps a
mask ``[L, M]`` that is added to the scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.graphs import CONTRIB, Replacement, constant, integers
from kdrt_export.onnx.ops import MARKERS


def standard_attention(graph: ir.Graph) -> int:
    """Scaled dot products with ONNX's own operators, as TensorRT's fusion of attention knows
    them: the scale on the query, then two matrix products around a softmax."""
    return _replace_sites(graph, _spelled_out)


def fused_attention(graph: ir.Graph) -> int:
    """``com.microsoft.MultiHeadAttention``, which never holds all scores at once."""
    return _replace_sites(graph, _fused)


def _replace_sites(graph: ir.Graph, replace: Callable[[ir.Graph, ir.Node], None]) -> int:
    sites = [n for n in graph if (n.domain, n.op_type) == (MARKERS, "Attention")]
    for node in sites:
        replace(graph, node)
    return len(sites)


def _spelled_out(graph: ir.Graph, node: ir.Node) -> None:
    query, key, value, *masks = node.inputs
    heads, head_dim = _number(node, "heads"), _number(node, "head_dim")
    new = Replacement(graph, node)

    def rows(x: ir.Value | None, order: list[int]) -> ir.Value:
        apart = new.op("Reshape", x, integers(graph, 0, -1, heads, head_dim))
        return new.op("Transpose", apart, attributes={"perm": order})

    dtype = ir.DataType(_number(node, "dtype")).numpy()
    scale = constant(graph, np.array(head_dim**-0.5, dtype))
    scores = new.op(
        "MatMul", new.op("Mul", rows(query, [0, 2, 1, 3]), scale), rows(key, [0, 2, 3, 1])
    )
    for mask in masks:
        scores = new.op("Add", scores, mask)
    shares = new.op("Softmax", scores, attributes={"axis": -1})
    attended = new.op("MatMul", shares, rows(value, [0, 2, 1, 3]))
    together = new.op("Transpose", attended, attributes={"perm": [0, 2, 1, 3]})
    new.done(new.op("Reshape", together, integers(graph, 0, -1, heads * head_dim)))


def _fused(graph: ir.Graph, node: ir.Node) -> None:
    query, key, value, *masks = node.inputs
    new = Replacement(graph, node)
    # No bias, no padding, and the mask for every image and every head.
    extra = [None, None, *(new.op("Unsqueeze", mask, integers(graph, 0, 1)) for mask in masks)]
    fused = new.op(
        "MultiHeadAttention",
        query,
        key,
        value,
        *(extra if masks else ()),
        domain=CONTRIB,
        attributes={"num_heads": _number(node, "heads")},
    )
    new.done(fused)


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()
