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
from kdrt_export.dialects.winograd import winograd
from kdrt_export.onnx_ops import MARKERS


def standard_dialect(traced: ir.Model) -> ir.Model:
    """A copy in ONNX's own operators, with everything that inputs can turn off."""
    model = traced.clone()
    resolve_optional(model.graph, keep=True)
    standard_attention(model.graph)
    return _tidied(model)


def onnxruntime_dialect(traced: ir.Model) -> ir.Model:
    """A copy in ONNX Runtime's operators, with everything that inputs can turn off."""
    return _tidied(_fused(traced, optional=True))


def cpu_dialect(traced: ir.Model, picture: Rows | None, *, optional: bool) -> ir.Model | None:
    """A copy for ONNX Runtime on a CPU, with what inputs can turn off or without it.

    Args:
        picture: the height of the picture it takes; None if it takes none.

    Returns:
        None if it would be :func:`onnxruntime_dialect`.
    """
    model, changes = _fused(traced, optional=optional), 0
    if picture is not None:
        changes += winograd(model.graph, picture)
        changes += group_norm(model.graph, picture)
    return _tidied(model) if changes or not optional else None


def _fused(traced: ir.Model, *, optional: bool) -> ir.Model:
    model = traced.clone()
    resolve_optional(model.graph, keep=optional)
    fused_attention(model.graph)
    split_projections(model.graph)
    bias_gelu(model.graph)
    model.opset_imports[CONTRIB] = 1
    return model


def _tidied(model: ir.Model) -> ir.Model:
    model.opset_imports.pop(MARKERS, None)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()
    )(model)
    return model
