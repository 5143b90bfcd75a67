"""Projections side by side, computed apart.

Query, key and value come from one matrix product whose result is then split. The halves of a
split are copies, on a CPU as large as the activations themselves; splitting the weight instead
costs nothing, since ONNX Runtime does that once, when it loads. The stored weight stays whole and
keeps its name, so what replaces weights by name still finds it.
"""

from __future__ import annotations

import onnx_ir as ir

from kdrt_export.dialects.graphs import Replacement, is_only_for, made_by, weight_and_other


def split_projections(graph: ir.Graph) -> int:
    """``Split(x @ Wᵀ + b)`` along the last axis becomes one product and sum for each part."""
    return sum(_split(graph, node) for node in list(graph) if made_by(node.outputs[0], "Split"))


def _split(graph: ir.Graph, split: ir.Node) -> bool:
    projected, sizes = split.inputs
    if projected is None or sizes is None or split.attributes["axis"].as_int() != -1:
        return False
    bias, gone = None, [split]
    addition = made_by(projected, "Add")
    if addition is not None:
        terms = weight_and_other(addition, 1)
        if terms is None or not is_only_for(projected, split):
            return False
        bias, projected = terms
        gone.append(addition)
    product = made_by(projected, "MatMul")
    if product is None or not is_only_for(projected, gone[-1]):
        return False
    x, transposed = product.inputs
    turn = made_by(transposed, "Transpose")
    if turn is None or turn.inputs[0] is None or not turn.inputs[0].is_initializer():
        return False
    new, count = Replacement(graph, split), len(split.outputs)
    weights = new.ops("Split", turn.inputs[0], sizes, outputs=count, attributes={"axis": 0})
    parts = [
        new.op("MatMul", x, new.op("Transpose", weight, attributes={"perm": [1, 0]}))
        for weight in weights
    ]
    if bias is not None:
        biases = new.ops("Split", bias, sizes, outputs=count, attributes={"axis": 0})
        parts = [new.op("Add", part, b) for part, b in zip(parts, biases, strict=True)]
    new.done(*parts, others=[*gone[1:], product])
    return True
