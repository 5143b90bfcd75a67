"""The layers of a graph, by the names that people know.

The tracer names nodes after the module that they are of: ``/mid_block/resnets.0/conv1/Conv`` is
the operator ``Conv`` of the module ``mid_block.resnets.0.conv1``. Consecutive nodes of one module
are one layer here; its result is what its last node gives.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import onnx

_ANONYMOUS = re.compile(r"val_\d+")
"""What passes call values inside of what they put in. Two graphs use the same for others."""

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}

_OF_SIZES = ("Shape", "Size")
"""Operators whose result depends on the size of what they read, not on its values."""


@dataclass(frozen=True)
class Layer:
    """A layer of a network.

    Attributes:
        module: the path of its module, as in PyTorch; empty for the network itself.
        operator: the name of its last operator within the module: ``Conv``, ``Add_1``.
        tensor: its result.
        reads: the results of the layers, and the inputs of the graph, that it follows from.
    """

    module: str
    operator: str
    tensor: str
    reads: tuple[str, ...]

    @property
    def name(self) -> str:
        """``mid_block.resnets.0.conv1/Conv``."""
        return operator_name(self.module, self.operator)


def operator_name(module: str, operator: str) -> str:
    """An operator with the path of its module."""
    return f"{module}/{operator}" if module else operator


def place_of(node: str) -> tuple[str, str]:
    """The module and the operator that the name of a node says.

    Operators begin with a capital, modules do not. What a pass put in the place of an operator is
    named below it, and counts as that operator.
    """
    parts = [part for part in node.split("/") if part]
    index = next((i for i, part in enumerate(parts) if part[0].isupper()), len(parts))
    return ".".join(parts[:index]), parts[index] if index < len(parts) else ""


def layers_of(graph: onnx.GraphProto, among: Collection[str] | None = None) -> list[Layer]:
    """The layers of a graph that compute with the values of its inputs, in the order of the nodes.

    Args:
        graph: of a bundle.
        among: results that may stand for a layer; None takes any that has a name of its own.
    """
    outputs = {value.name for value in graph.output}
    sources: dict[str, frozenset[str]] = {
        value.name: frozenset([value.name]) for value in graph.input
    }
    """The results so far, by the layers and inputs that they follow from."""
    found: list[Layer] = []
    run: list[onnx.NodeProto] = []

    def close() -> None:
        results = [(node, name) for node in run for name in node.output if name]
        candidates = [
            (node, name)
            for node, name in results
            if not _ANONYMOUS.fullmatch(name) and (among is None or name in among)
        ]
        marked = {name for _, name in candidates if name in outputs}
        if candidates:
            marked.add(candidates[-1][1])
        for node, name in candidates:
            if name in marked:
                module, operator = place_of(node.name)
                found.append(Layer(module, operator, name, tuple(sorted(sources[name]))))
        # Only now: within a layer they follow from what it reads.
        sources.update({name: frozenset([name]) for name in marked})
        run.clear()

    for node in graph.node:
        if node.op_type in _OF_SIZES:
            continue
        reads = frozenset[str]().union(*(sources.get(name, ()) for name in node.input))
        if not reads:
            continue
        if run and place_of(run[0].name)[0] != place_of(node.name)[0]:
            close()
            reads = frozenset[str]().union(*(sources.get(name, ()) for name in node.input))
        run.append(node)
        sources.update(dict.fromkeys(node.output, reads))
    close()
    return found


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value of a graph, as far as ONNX can tell it."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def is_float(element_type: int | None) -> bool:
    """Whether it is a type of activations."""
    return element_type in _FLOATS
