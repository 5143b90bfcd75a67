"""What the passes share: looking at a graph, and replacing a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_SPELLED_OUT = 8
"""Constants of more numbers are named after a digest of them."""

Attributes = Mapping[str, int | float | Sequence[int]]


class Replacement:
    """Nodes that will take the place of a node: made one by one, put in at the end.

    Args:
        graph: where the node is.
        node: goes.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node
        self._tape = tape.Tape(graph)

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        domain: str = "",
        attributes: Attributes | None = None,
    ) -> ir.Value:
        """The output of a new node."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, attributes=attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        attributes: Attributes | None = None,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node. It is named after the old one."""
        count = len(self._tape.nodes)
        name = f"{self._node.name}/{kind}" + (f"_{count}" if count else "")
        return self._tape.op_multi_out(
            kind,
            inputs,
            attributes,
            num_outputs=outputs,
            domain=domain,
            name=name,
        )

    def done(self, *outputs: ir.Value, others: Sequence[ir.Node] = ()) -> None:
        """Put the new nodes in the place of the old one, and ``outputs`` in that of its outputs;
        ``others`` go with it, their outputs unused by then."""
        old = list(self._node.outputs)
        for new, value in zip(outputs, old, strict=True):
            new.type, new.shape, new.name = value.type, value.shape, value.name
            value.name = None
        self._graph.insert_before(self._node, self._tape.nodes)
        ir.convenience.replace_all_uses_with(old, outputs, replace_graph_outputs=True)
        self._graph.remove([self._node, *others], safe=True)


@dataclass(frozen=True)
class Rows:
    """What is known of the size of an image inside a network.

    Attributes:
        usual: rows at the size that the network was made for.
        multiple: what the numbers of rows and of columns can be divided by; less than one if they
            were halved more often than that goes without a rest.
    """

    usual: float
    multiple: float


def rows_of(graph: ir.Graph, image: Rows) -> dict[ir.Value, Rows]:
    """The heights of everything that is computed, by value, in a network that halves and doubles
    the ``image`` it takes. They mean nothing where a value is no image."""
    halvings = dict.fromkeys(graph.inputs, 0)
    for node in graph:
        # Numbers that have nothing to do with images are at none.
        here = max((halvings[v] for v in node.inputs if v in halvings), key=abs, default=0)
        if node.op_type == "Conv" and 2 in numbers(node, "strides"):
            here += 1
        elif node.op_type == "Resize" and node.inputs[0] is not None:
            # The size it goes to may be that of another value, which is there already.
            here = halvings.get(node.inputs[0], 0) - 1
        halvings.update(dict.fromkeys(node.outputs, here))
    return {
        value: Rows(image.usual / 2**times, image.multiple / 2**times)
        for value, times in halvings.items()
    }


def numbers(node: ir.Node, name: str) -> tuple[int, ...]:
    """An attribute that is a list of whole numbers; empty without it."""
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def constant(graph: ir.Graph, values: np.ndarray) -> ir.Value:
    """An initialiser with these values; equal ones are the same."""
    shape = "x".join(map(str, values.shape)) or "scalar"
    digits = "_".join(f"{float(v):.9g}" for v in values.ravel())
    if values.size > _SPELLED_OUT:
        digits = hashlib.sha256(digits.encode()).hexdigest()[:16]
    name = f"constant_{values.dtype}_{shape}_{digits}"
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(values, name=name))
    graph.register_initializer(value)
    return value


def integers(graph: ir.Graph, *values: int) -> ir.Value:
    """A constant list of whole numbers, as shapes and sizes are."""
    return constant(graph, np.array(values, np.int64))


def constant_of(value: ir.Value | None) -> list[int | float]:
    """The numbers in a value of one dimension that is the same at every run; empty if it is not."""
    joined = made_by(value, "Concat")
    if joined is not None:
        parts = [constant_of(part) for part in joined.inputs]
        return [number for part in parts for number in part] if all(parts) else []
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if tensor is None or tensor.numpy().ndim != 1 else tensor.numpy().tolist()


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes a value, if it is one of this kind."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", kind) else None


def is_only_for(value: ir.Value, user: ir.Node) -> bool:
    """Whether nothing else reads a value."""
    return not value.is_graph_output() and all(node is user for node, _ in value.uses())


def weight_and_other(node: ir.Node, rank: int) -> tuple[ir.Value, ir.Value] | None:
    """The inputs of a node of two, stored weights of a rank first; None if neither is one."""
    first, second = node.inputs
    for weight, other in ((first, second), (second, first)):
        if weight is None or other is None or not weight.is_initializer():
            continue
        if weight.shape is not None and len(weight.shape) == rank:
            return weight, other
    return None
