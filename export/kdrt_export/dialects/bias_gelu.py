"""A bias and GELU, as ONNX Runtime's one operator: one pass over the activations instead of two."""

from __future__ import annotations

import onnx_ir as ir

from kdrt_export.dialects.graphs import (
    CONTRIB,
    Replacement,
    is_only_for,
    made_by,
    weight_and_other,
)


def bias_gelu(graph: ir.Graph) -> int:
    """``Gelu(x + b)`` with a stored ``b`` becomes ``com.microsoft.BiasGelu(x, b)``. Only the exact
    GELU: the operator has no other."""
    return sum(_fuse(graph, node) for node in list(graph) if made_by(node.outputs[0], "Gelu"))


def _fuse(graph: ir.Graph, gelu: ir.Node) -> bool:
    addition = made_by(gelu.inputs[0], "Add")
    if addition is None or not is_only_for(addition.outputs[0], gelu):
        return False
    form = gelu.attributes.get("approximate")
    terms = _bias_and_other(addition)
    if terms is None or (form is not None and form.as_string() != "none"):
        return False
    bias, x = terms
    new = Replacement(graph, gelu)
    new.done(new.op("BiasGelu", x, bias, domain=CONTRIB), others=[addition])
    return True


def _bias_and_other(addition: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Also where the bias is one part of a stored one, see `split_projections`."""
    first, second = addition.inputs
    for bias, other in ((first, second), (second, first)):
        part = made_by(bias, "Split")
        if bias is not None and other is not None and part is not None:
            source = part.inputs[0]
            if source is not None and source.is_initializer() and len(source.shape or ()) == 1:
                return bias, other
    return weight_and_other(addition, 1)
