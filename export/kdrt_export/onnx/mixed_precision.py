"""A graph pass that keeps some operators of a half-precision network in float32, and their weights.

    half ──► Cast ──► operators in float32 ──► Cast ──► half

Operators that read each other's results stay together: there are casts around them, none between.
So a result that float16 cannot hold has to be kept with whoever reads it. A value that is computed
in float32 has the name it always had; what is cast back is called ``<name>/half``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from kdrt_export.compare.layers import element_types, operator_name, place_of
from kdrt_export.dialects.build import standard_dialect
from kdrt_export.dialects.graphs import constant
from kdrt_export.onnx.ops import MARKERS

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT = ir.DataType.FLOAT

_UNTOUCHED = ("Constant", "ConstantOfShape", "Optional", "Shape", "Size")
"""Operators that compute nothing from the values they read, and the marker that passes one on."""

Selects = Callable[[str, str], bool]
"""Whether the operator of a module is kept: ``selects("mid_block.resnets.0", "Add_1")``."""


@dataclass(frozen=True)
class Float32Part:
    """What to keep in float32 of a network in half precision.

    Attributes:
        selects: which operators.
        originals: the weights before they were cast, as far as they are at hand.
    """

    selects: Selects
    originals: Mapping[str, Tensor]


@dataclass
class _Types:
    """The element types of the values of a graph, also while it changes."""

    by_name: Mapping[str, int]
    changed: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def of(self, value: ir.Value) -> ir.DataType | None:
        if value in self.changed:
            return self.changed[value]
        node = value.producer()
        if node is not None and (node.domain, node.op_type) == (MARKERS, "Optional"):
            after = node.inputs[1]
            return None if after is None else self.of(after)
        number = self.by_name.get(value.name or "")
        return ir.DataType(number) if number else None

    def add(self, value: ir.Value, dtype: ir.DataType) -> None:
        """Note the type of a new value."""
        self.changed[value] = dtype

    def widen(self, value: ir.Value) -> None:
        """Note that a value is float32 from now on."""
        self.changed[value] = _FLOAT
        value.type = ir.TensorType(_FLOAT)  # not its dtype: clones of a graph share that object

    def is_half(self, value: ir.Value | None) -> bool:
        return value is not None and self.of(value) in _HALVES


def half_modules(traced: ir.Model) -> list[str]:
    """The modules that compute in half precision, in the order of the graph."""
    types = _Types(element_types(ir.to_proto(standard_dialect(traced))))
    return list(dict.fromkeys(_module(node) for node in traced.graph if _computes(node, types)))


def keep_float32(
    traced: ir.Model, part: Float32Part, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Keep a part of a traced model in float32, in place.

    Args:
        traced: takes every weight that it uses as an input of that name.
        part: which operators.
        weights: by name, all there are, in half precision.

    Returns:
        The weights that it takes in float32 now, and what was kept: modules, and the operators of
        those that are not kept as a whole.
    """
    graph = traced.graph
    types = _Types(element_types(ir.to_proto(standard_dialect(traced))))
    kept = [
        node
        for node in graph
        if part.selects(*place_of(node.name or "")) and _computes(node, types)
    ]
    chosen = set(kept)
    whole = {_module(node) for node in graph} - {
        _module(node) for node in graph if node not in chosen and _computes(node, types)
    }
    names = list(dict.fromkeys(_name(node, whole) for node in kept))
    result: dict[str, Tensor] = {}
    widened: dict[ir.Value, ir.Value] = {}
    for node in kept:
        half = next(types.of(v) for v in (*node.inputs, *node.outputs) if types.is_half(v))
        assert half is not None
        for index, value in enumerate(node.inputs):
            if value is None or not types.is_half(value):
                continue
            if value.name in weights and all(user in chosen for user, _ in value.uses()):
                result[value.name] = part.originals.get(value.name, weights[value.name].float())
                types.widen(value)
                continue
            if value not in widened:
                widened[value] = _widened(graph, node, value)
            node.replace_input_with(index, widened[value])
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", _FLOAT.value)
        elif "dtype" in node.attributes:  # a marker, which says what it computes in
            node.attributes["dtype"] = ir.AttrInt64("dtype", _FLOAT.value)
        for value in node.outputs:
            if types.is_half(value):
                types.widen(value)
                narrow = _narrow_for_others(graph, node, value, half, chosen)
                if narrow is not None:
                    types.add(narrow, half)
    return result, names


def _module(node: ir.Node) -> str:
    return place_of(node.name or "")[0]


def _name(node: ir.Node, whole: Collection[str]) -> str:
    module, operator = place_of(node.name or "")
    return module if module and module in whole else operator_name(module, operator)


def _computes(node: ir.Node, types: _Types) -> bool:
    """Whether an operator would do something else in float32."""
    if node.op_type in _UNTOUCHED:
        return False
    values = node.outputs if node.op_type == "Cast" else (*node.inputs, *node.outputs)
    return any(types.is_half(value) for value in values)


def _widened(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """A value in float32, for a node and those behind it."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return constant(graph, np.asarray(tensor.numpy()).astype(np.float32))
    name = f"{value.name}/float"
    cast = _cast(value, _FLOAT, name)
    graph.insert_before(node, cast)
    return cast.outputs[0]


def _narrow_for_others(
    graph: ir.Graph, node: ir.Node, value: ir.Value, half: ir.DataType, chosen: set[ir.Node]
) -> ir.Value | None:
    """Give whoever does not compute in float32 a result in half precision; None if all do."""
    others = [(user, index) for user, index in value.uses() if user not in chosen]
    outputs = [index for index, output in enumerate(graph.outputs) if output is value]
    if not others and not outputs:
        return None
    cast = _cast(value, half, f"{value.name}/half")
    # ONNX Runtime on a CPU computes operators in float16 between casts of its own, and takes those
    # for superfluous behind another: what overflows here would not there. This keeps them apart.
    apart = ir.Node(
        "",
        "Identity",
        cast.outputs,
        outputs=[ir.val(f"{value.name}/rounded", half)],
        name=f"{value.name}/rounded",
    )
    narrow = apart.outputs[0]
    for user, index in others:
        user.replace_input_with(index, narrow)
    if outputs:  # their names are those of the component
        narrow.shape = value.shape
        narrow.name, value.name = value.name, f"{value.name}/float"
        for index in outputs:
            graph.outputs[index] = narrow
    graph.insert_after(node, [cast, apart])
    return narrow


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    output = ir.val(name, dtype)
    return ir.Node(
        "",
        "Cast",
        [value],
        [ir.AttrInt64("to", dtype.value)],
        outputs=[output],
        name=name,
    )


def float32_of(component: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of a component's weights and buffers in float32, by name."""
    named = [
        *component.named_parameters(remove_duplicate=False),
        *component.named_buffers(remove_duplicate=False),
    ]
    return {
        name: tensor.detach().float().clone()
        for name, tensor in named
        if tensor.is_floating_point()
    }
