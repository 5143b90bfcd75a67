"""A graph that computes certain values and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def cut(
    model: onnx.ModelProto, outputs: Sequence[str], types: Mapping[str, int]
) -> onnx.ModelProto:
    """A copy of a model whose outputs are these values, without the nodes that none needs.

    Args:
        model: its weights may be elsewhere; then so they are in the copy.
        outputs: values of the graph, in any order.
        types: their element types.
    """
    graph = model.graph
    needed = set(outputs)
    kept = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for field in (result.graph.node, result.graph.initializer, result.graph.output):
        del field[:]
    result.graph.node.extend(reversed(kept))
    result.graph.initializer.extend(t for t in graph.initializer if t.name in needed)
    # Sizes are left open: readers infer them.
    result.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None) for name in outputs
    )
    inputs = [value for value in graph.input if value.name in needed]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    return result


def with_sizes_as_outputs(
    model: onnx.ModelProto, values: Sequence[str], types: Mapping[str, int]
) -> onnx.ModelProto:
    """A copy of a model whose outputs are the shapes of these values, in their order: it runs in
    the memory that the model itself needs."""
    result = cut(model, values, types)
    del result.graph.output[:]
    for index, name in enumerate(values):
        shape = f"shape of {index}"
        result.graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
        result.graph.output.append(
            onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None)
        )
    return result
