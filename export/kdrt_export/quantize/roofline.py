"""The least time that a GPU can take for one run of a network: an estimate, not a measurement.

Of every layer that multiplies, a GPU has to do its operations and to move its numbers, and can at
best do both at once at the rates of its data sheet:

    t = Σ max(F / P, N / W)

F: operations of the layer, a multiplication and an addition as two. P: operations in a second, of
the type that the layer multiplies in. N: bytes of its weights, of the activations that it reads, in
that type, and of what it writes, in 16 bits. W: bytes in a second from and to memory. Layers are
convolutions, linear layers and attentions, these as one kernel that moves no scores. Norms and
what else there is between layers count as fused, and caches as if there were none.

Kernels reach half of these rates or less, and small layers a tenth. What the estimate is good for
is the comparison of types: a network that is bound by memory gains what its numbers shrink, and one
bound by operations what the rates differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import onnx
import onnx_ir as ir

from kdrt_export.compare.layers import place_of
from kdrt_export.errors import ExportError
from kdrt_export.quantize.layers import is_attention

HALF = "fp16"
"""What layers that are not quantised multiply in."""

_BYTES = MappingProxyType({HALF: 2, "int8": 1, "fp8": 1})
"""Of a number."""


@dataclass(frozen=True)
class Gpu:
    """The rates of a GPU, as its maker publishes them.

    Attributes:
        name: of the card.
        bandwidth: bytes in a second from and to memory.
        rates: operations in a second of its tensor cores by type, without sparsity; of 16 and 8 bit
            floats with sums in float32.
        source: where that is published.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    source: str


_ADA = "NVIDIA Ada GPU Architecture, whitepaper"

GPUS = (
    Gpu("RTX 4090", 1008e9, {HALF: 165.2e12, "fp8": 330.3e12, "int8": 660.6e12}, _ADA),
    Gpu(
        "RTX 5090",
        1792e9,
        {HALF: 209.5e12, "fp8": 419e12, "int8": 838e12},
        "NVIDIA RTX Blackwell GPU Architecture, whitepaper",
    ),
    Gpu("L40S", 864e9, {HALF: 362e12, "fp8": 733e12, "int8": 733e12}, "NVIDIA L40S, data sheet"),
    Gpu(
        "RTX 3090",
        936e9,
        {HALF: 71e12, "int8": 284e12},
        "NVIDIA Ampere GA102 GPU Architecture, whitepaper",
    ),
    Gpu("A10", 600e9, {HALF: 125e12, "int8": 250e12}, "NVIDIA A10, data sheet"),
)
"""Cards that the estimate is made for. A type that one has no kernels for is not among its
rates."""


@dataclass(frozen=True)
class Work:
    """What a layer asks for.

    Attributes:
        name: the path of its module.
        kind: convolution, linear, or attention.
        operations: a multiplication and an addition are two.
        read: elements that it reads, weights included.
        written: elements that it writes.
    """

    name: str
    kind: str
    operations: int
    read: int
    written: int


def work_of(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> list[Work]:
    """The layers of a float network that multiply.

    Args:
        model: a standard graph; its weights are not read.
        shapes: of its inputs.

    Raises:
        ExportError: the size of a layer does not follow from those.
    """
    model = with_shapes(model, shapes)
    batch = int(next(iter(shapes.values()))[0])
    found: list[Work] = []
    attentions: dict[str, list[ir.Node]] = {}
    for node in ir.from_proto(model).graph:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        name, _ = place_of(str(node.name))
        if is_attention(node):
            attentions.setdefault(name, []).append(node)
            continue
        weight = prod(_dims(node.inputs[1]))
        written = _dims(node.outputs[0], rows=batch)
        if node.op_type == "Conv":
            kind, channels, read = "convolution", written[1], prod(_dims(node.inputs[0]))
        else:
            kind, channels = "linear", written[-1]
            read = prod(written) // channels * (weight // channels)
        operations = 2 * prod(written) * (weight // channels)
        found.append(Work(name, kind, operations, read + weight, prod(written)))
    for name, (scores, result) in attentions.items():
        query, key = map(_dims, scores.inputs)
        value, written = _dims(result.inputs[1]), _dims(result.outputs[0])
        operations = 2 * prod(query) * key[-1] + 2 * prod(written) * key[-1]
        moved = prod(query) + prod(key) + prod(value)
        found.append(Work(name, "attention", operations, moved, prod(written)))
    return found


def least_seconds(
    layers: Sequence[Work], gpu: Gpu, format: str, left: Collection[tuple[str, str]] = ()
) -> float:
    """The estimate.

    Args:
        layers: of a network.
        gpu: which one.
        format: ``fp16``, ``int8`` or ``fp8``.
        left: names and kinds of those that are not quantised.
    """
    total = 0.0
    for layer in layers:
        type_ = HALF if (layer.name, layer.kind) in left else format
        moved = layer.read * _BYTES[type_] + layer.written * _BYTES[HALF]
        total += max(layer.operations / gpu.rates[type_], moved / gpu.bandwidth)
    return total


def with_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """A copy in which every value has the shape that follows from those of the inputs.

    Args:
        model: its weights are not read.
        shapes: of its inputs.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.dim_value = size
    del result.graph.value_info[:]
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(result, data_prop=True)


def _dims(value: ir.Value | None, rows: int | None = None) -> tuple[int, ...]:
    """The shape of a value; ``rows`` is the first size where that is not inferred, as of what is
    computed of the timestep, which has a row for each image."""
    assert value is not None
    sizes = () if value.shape is None else tuple(value.shape)
    if rows is not None and sizes and not isinstance(sizes[0], int):
        sizes = (rows, *sizes[1:])
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) < max(len(sizes), 1):
        raise ExportError(f"the shape of {value.name} does not follow from those of the inputs")
    return known
