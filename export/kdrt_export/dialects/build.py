"""The dialects, as rows of passes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from kdrt_export.dialects.attention import fused_attention, standard_attention
from kdrt_export.dialects.bias_gelu import bias_gelu
from kdrt_export.dialects.graphs import CONTRIB, Rows
from kdrt_export.dialects.group_norm import group_norm
from kdrt_export.dialects.optional_steps import resolve_optional
from kdrt_export.dialects.split_projections import split_projections
from kdrt_export.dialects.upsampling import upsampling
from kdrt_export.dialects.winograd import winograd
from kdrt_export.onnx.ops import MARKERS


def standard_dialect(traced: ir.Model) -> ir.Model:
    """A copy in ONNX's own operators, with everything that inputs can turn off."""
    model = traced.clone()
    resolve_optional(model.graph, keep=True)
    standard_attention(model.graph)
    return _tidied(model)


def onnxruntime_dialect(traced: ir.Model, *, optional: bool) -> ir.Model:
    """A copy in ONNX Runtime's operators, with what inputs can turn off or without it."""
    model = traced.clone()
    graph = model.graph
    resolve_optional(graph, keep=optional)
    fused_attention(graph)
    split_projections(graph)
    bias_gelu(graph)
    model.opset_imports[CONTRIB] = 1
    return _tidied(model)


def cpu_dialect(fused: ir.Model, image: Rows | None) -> ir.Model | None:
    """A copy of :func:`onnxruntime_dialect` in the order that suits a CPU; None where that is no
    other.

    Args:
        image: the size of the image it takes; None if it takes none.
    """
    if image is None:
        return None
    model = fused.clone()
    graph = model.graph
    changes = winograd(graph, image) + group_norm(graph, image)
    changes += upsampling(graph, image)  # last: it leaves no trace of what is twice as large
    return _tidied(model) if changes else None


def _tidied(model: ir.Model) -> ir.Model:
    model.opset_imports.pop(MARKERS, None)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()
    )(model)
    return model
