"""The layers of a graph that can be quantised."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import onnx_ir as ir

from kdrt_export.compare.layers import place_of
from kdrt_export.quantize.formats import Format, Kind

_ALWAYS_FLOAT = re.compile(
    r"(^|\.)(conv_in|conv_out|time_embedding|time_emb_proj|add_embedding|class_embedding)(\.|$)"
)
"""Modules that stay as they are: the first and the last convolution, whose errors are in the noise
prediction at once, and the embeddings of time, size and label, which are small and reach every
block. NVIDIA's recipe for SDXL leaves them too."""

FEWEST_KEYS = 32
"""Keys of an attention from which on TensorRT-RTX computes it in 8 bits as one kernel. With fewer
it takes three, with all scores in memory between them, where 16 bits take one."""

_SMALLEST = 4
"""How many times fewer pixels the smallest image of an engine may have than the model's own: half
the side, in the widest profile."""

_ATTENTION = "Attention"
"""What the standard dialect names its products after."""


@dataclass(frozen=True)
class QuantizableLayer:
    """A layer of a graph.

    Attributes:
        name: the path of its module, as in PyTorch.
        kind: what it is.
        nodes: the names of its nodes: one, or both products of an attention.
        reads: the activations that these read, in their order.
        weight: the initialiser with its weight, ``[O, I]`` or ``[O, I, kh, kw]``; None for
            attention.
        parts: how many of the outputs go to each of several readers, where a ``Split`` follows at
            once, as after the projection to query, key and value; else empty.
    """

    name: str
    kind: Kind
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    weight: str | None
    parts: tuple[int, ...] = ()

    def part_weights(self) -> dict[str, slice]:
        """The rows of each part of the weight, by what the part is called; of a layer in one piece
        that is the weight itself."""
        if self.weight is None:
            return {}
        if not self.parts:
            return {self.weight: slice(None)}
        ends = [*accumulate(self.parts)]
        return {
            f"{self.weight}.{place}": slice(end - size, end)
            for place, (size, end) in enumerate(zip(self.parts, ends, strict=True))
        }


@dataclass
class _Attention:
    nodes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)


def quantizable_layers(graph: ir.Graph, into: Format) -> list[QuantizableLayer]:
    """The layers of a bundle's standard graph that a format is for, in the order of the graph."""
    found: dict[tuple[str, Kind], QuantizableLayer] = {}
    attentions: dict[tuple[str, Kind], _Attention] = {}
    for node in graph:
        name, _ = place_of(node.name or "")
        weight = weight_of(node) if node.op_type in ("Conv", "MatMul") else None
        kind: Kind
        if weight is not None:
            kind = "convolution" if node.op_type == "Conv" else "linear"
        elif is_attention(node):
            kind = "attention"
        else:
            continue
        if kind not in into.kinds or _ALWAYS_FLOAT.search(name):
            continue
        key = (name, kind)
        if weight is not None:
            shape = weight.shape
            assert shape is not None
            if into.block is not None and int(shape[1]) % into.block:
                continue
            found[key] = QuantizableLayer(
                name, kind, (str(node.name),), (_name(node.inputs[0]),), weight.name, _parts(node)
            )
            continue
        attention = attentions.setdefault(key, _Attention())
        attention.nodes.append(str(node.name))
        attention.reads += map(_name, node.inputs)
        found[key] = QuantizableLayer(
            name, kind, tuple(attention.nodes), tuple(attention.reads), None
        )
    return list(found.values())


def is_attention(node: ir.Node) -> bool:
    """Whether a node is one of the two products of an attention."""
    _, operator = place_of(node.name or "")
    return node.op_type == "MatMul" and operator == _ATTENTION and weight_of(node) is None


def weight_of(node: ir.Node) -> ir.Value | None:
    """The initialiser of a convolution, or of a linear layer as PyTorch keeps it: transposed before
    the product. None where both factors are computed."""
    value = node.inputs[1]
    if node.op_type == "MatMul":
        before = value.producer() if value is not None else None
        if before is None or before.op_type != "Transpose":
            return None
        value = before.inputs[0]
    return value if value is not None and value.is_initializer() else None


def split_after(node: ir.Node) -> ir.Node | None:
    """The ``Split`` of the last axis that alone reads what a linear layer gives; else None."""
    readers = [usage.node for usage in node.outputs[0].uses()]
    if node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Split":
        return None
    (split,) = readers
    axis = split.attributes.get("axis")
    return split if axis is not None and axis.as_int() == -1 else None


def activations_of(layers: Iterable[QuantizableLayer]) -> list[str]:
    """What the layers read, each once."""
    return list(dict.fromkeys(name for layer in layers for name in layer.reads))


def without_float32(
    layers: Iterable[QuantizableLayer], kept: Collection[str]
) -> list[QuantizableLayer]:
    """The layers that compute in the precision of their network.

    Args:
        layers: of a graph.
        kept: what computes in float32 there, as :attr:`kdrt.bundle.Component.float32` has it:
            modules, or operators of them as ``mid_block.attn1/Attention``.
    """
    modules = {name.partition("/")[0] for name in kept}
    return [
        layer
        for layer in layers
        if not any(f"{layer.name}.".startswith(f"{module}.") for module in modules)
    ]


def is_fused(layer: QuantizableLayer, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether TensorRT-RTX computes a layer as one kernel in 8 bits, whatever the size.

    Args:
        layer: of the graph.
        shapes: of what it reads, at the size of the calibration.
    """
    if layer.kind != "attention":
        return True
    _, _, probabilities, _ = layer.reads
    queries, keys = shapes[probabilities][-2:]
    # Where there are as many of both they are the places of the image.
    return (keys // _SMALLEST if keys == queries else keys) >= FEWEST_KEYS


def _parts(node: ir.Node) -> tuple[int, ...]:
    split = split_after(node)
    sizes = None if split is None else ir.convenience.get_const_tensor(split.inputs[1])
    return () if sizes is None else tuple(map(int, sizes.numpy()))


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)
