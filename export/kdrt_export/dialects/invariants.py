"""What follows from inputs that rarely change, as a graph of its own.

A UNet runs dozens of times on one prompt, and computes from it the keys and values of its
cross-attention each time, and a part of its embedding. Here such results become inputs, and another
graph computes them:

    encoder_hidden_states, … ──► invariants ──► keys, values, …      once a prompt
    sample, timestep, keys, values, … ──► the network                at every step

This is loop-invariant code motion, the loop being that of a sampler. No operator changes, and no
result either. (One graph with a branch, taken when the prompt changes, gains a third of it.)
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

_PRODUCTS = ("MatMul", "Gemm", "Conv")
"""What is worth it has one of these behind it."""


def split_invariants(model: ir.Model, varying: Collection[str]) -> ir.Model | None:
    """Make inputs of what follows from none of the ``varying`` ones, those that change at every
    run, and has products behind it, in float32.

    Returns:
        What computes those, under the same names; None if there is nothing.
    """
    if not varying:
        return None
    common.ShapeInferencePass()(model)
    found = _invariants(model.graph, varying)
    if not found:
        return None
    names = [value.name for value in found]
    invariants = model.clone()
    made = {value.name: value for node in invariants.graph for value in node.outputs}
    invariants.graph.outputs[:] = [made[name] for name in names]

    for value in found:
        given = ir.val(value.name, value.dtype, value.shape)
        value.replace_all_uses_with(given)
        model.graph.inputs.append(given)
    for each in (model, invariants):
        common.RemoveUnusedNodesPass()(each)
        each.graph.inputs[:] = [value for value in each.graph.inputs if value.uses()]
    return invariants


def _invariants(graph: ir.Graph, varying: Collection[str]) -> list[ir.Value]:
    varies = {value for value in graph.inputs if value.name in varying}
    follows = set(graph.inputs)
    """Constants follow from no input."""
    products: set[ir.Value] = set()
    found: dict[ir.Value, None] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not varies.isdisjoint(inputs):
            varies.update(node.outputs)
            found.update(dict.fromkeys(value for value in inputs if value in products - varies))
        elif not follows.isdisjoint(inputs) and (
            node.op_type in _PRODUCTS or not products.isdisjoint(inputs)
        ):
            products.update(node.outputs)
        if not follows.isdisjoint(inputs):
            follows.update(node.outputs)
    symbols = {size for value in graph.inputs for size in value.shape or ()}
    return [value for value in found if _can_be_input(value, symbols)]


def _can_be_input(value: ir.Value, symbols: Collection[int | ir.SymbolicDim]) -> bool:
    """Whether its size is known once those of the inputs are."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None or value.is_graph_output():
        return False
    return all(isinstance(size, int) or size in symbols for size in value.shape)
