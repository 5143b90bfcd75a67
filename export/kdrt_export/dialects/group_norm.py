"""Group norms as kernels for CPUs like them.

A group norm is traced as an instance norm of the groups, with scale and bias of the channels after
it. Those two are one operation: a batch norm with mean 0 and variance 1 is ``x·scale + bias``.

ONNX Runtime's kernel for the instance norm adds up a group in one go in float32: over the two
million values that a group has at 512 by 512 pixels the sum is off by 1e-5 and more. In large
images it is spelled out,

    mean and mean of squares of every row            two passes that read
    from them the mean and variance of the group     a few thousand numbers
    the norm, scale and bias as one x·s + t          two passes that write

which is off by 1e-7. (As one operation the last would be a pass fewer, on one thread instead of
all.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kdrt_export.dialects.graphs import (
    Replacement,
    Rows,
    constant,
    constant_of,
    integers,
    is_only_for,
    made_by,
    rows_of,
)

MIN_ROWS = 128
"""Below, the kernel is exact enough, and the dozen small operations cost more than the pass."""


@dataclass(frozen=True)
class _Norm:
    """What a group norm is traced as: a reshape of ``x``, the instance norm, the reshape back, a
    product and a sum."""

    x: ir.Value
    norm: ir.Node
    after: ir.Node
    scaling: ir.Node
    addition: ir.Node
    scale: ir.Value
    bias: ir.Value
    groups: int
    channels: int


def group_norm(graph: ir.Graph, image: Rows) -> int:
    """Group norms in float32, those of images that usually have ``MIN_ROWS`` rows spelled out.
    ``image``: the size of the graph's input."""
    rows = rows_of(graph, image)
    changes = 0
    for node in list(graph):
        site = _site(node)
        if site is None:
            continue
        if rows[node.outputs[0]].usual >= MIN_ROWS:
            _spell_out(graph, site)
        else:
            _join(graph, site)
        changes += 1
    return changes


def _site(norm: ir.Node) -> _Norm | None:
    if made_by(norm.outputs[0], "InstanceNormalization") is None:
        return None
    grouped, ones, _ = norm.inputs
    before, after = made_by(grouped, "Reshape"), _only_user(norm, "Reshape")
    scaling = after and _only_user(after, "Mul")
    addition = scaling and _only_user(scaling, "Add")
    if before is None or after is None or scaling is None or addition is None or ones is None:
        return None
    scale, bias = _of_channels(scaling), _of_channels(addition)
    groups, x = len(constant_of(ones)), before.inputs[0]
    if scale is None or bias is None or scale.shape is None or not groups or x is None:
        return None
    if scale.dtype != ir.DataType.FLOAT:
        return None  # in half precision the squares of a row may be out of range
    return _Norm(x, norm, after, scaling, addition, scale, bias, groups, int(scale.shape[0]))


def _join(graph: ir.Graph, site: _Norm) -> None:
    """Scale and bias in one."""
    new = Replacement(graph, site.addition)
    mean, variance = (
        constant(graph, np.full(site.channels, value, np.float32)) for value in (0, 1)
    )
    inputs = site.after.outputs[0], site.scale, site.bias, mean, variance
    new.done(
        new.op("BatchNormalization", *inputs, attributes={"epsilon": 0.0}), others=[site.scaling]
    )


def _spell_out(graph: ir.Graph, site: _Norm) -> None:
    x, groups = site.x, site.groups
    new = Replacement(graph, site.addition)

    def mean(values: ir.Value, axis: int, *, keep: bool) -> ir.Value:
        return new.op(
            "ReduceMean", values, integers(graph, axis), attributes={"keepdims": int(keep)}
        )

    def grouped_rows(values: ir.Value) -> ir.Value:
        return new.op("Reshape", values, integers(graph, 0, groups, -1))

    # The variance of a group is that within its rows and that of their means.
    row_means = mean(x, 3, keep=False)
    squares = new.op("ReduceSumSquare", x, integers(graph, 3), attributes={"keepdims": 0})
    width = new.op("Shape", x, attributes={"start": 3, "end": 4})
    width = new.op("Cast", width, attributes={"to": ir.DataType.FLOAT.value})
    within = new.op("Sub", new.op("Div", squares, width), new.op("Mul", row_means, row_means))
    row_means = grouped_rows(row_means)
    group_mean = mean(row_means, 2, keep=True)
    apart = new.op("Sub", row_means, group_mean)
    variance = new.op(
        "Add",
        mean(grouped_rows(within), 2, keep=True),
        mean(new.op("Mul", apart, apart), 2, keep=True),
    )
    epsilon = constant(graph, np.array(site.norm.attributes["epsilon"].as_float(), np.float32))
    deviation = new.op("Sqrt", new.op("Add", variance, epsilon))  # [B, groups, 1]

    in_groups = integers(graph, groups, -1)
    factor = new.op("Div", new.op("Reshape", site.scale, in_groups), deviation)
    offset = new.op(
        "Sub", new.op("Reshape", site.bias, in_groups), new.op("Mul", factor, group_mean)
    )
    of_channels = integers(graph, 0, site.channels, 1, 1)
    scaled = new.op("Mul", x, new.op("Reshape", factor, of_channels))
    result = new.op("Add", scaled, new.op("Reshape", offset, of_channels))
    new.done(result, others=[site.scaling, site.after, site.norm])


def _only_user(node: ir.Node, kind: str) -> ir.Node | None:
    """The one node that reads what a node makes, if it is of this kind."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or not is_only_for(node.outputs[0], users[0]):
        return None
    return made_by(users[0].outputs[0], kind)


def _of_channels(node: ir.Node) -> ir.Value | None:
    """Stored values ``[C]`` that a node applies to an image as ``[C, 1, 1]``."""
    for value in node.inputs:
        shaped = made_by(value, "Unsqueeze")
        if shaped is None or constant_of(shaped.inputs[1]) != [1, 2]:
            continue
        stored = shaped.inputs[0]
        if stored is not None and stored.is_initializer() and len(stored.shape or ()) == 1:
            return stored
    return None
