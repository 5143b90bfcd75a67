"""From a component to ONNX: a small graph with full names, and its weights in one file.

The graph is traced without weights: they enter as inputs named after the module's parameters.
The inputs are then declared as external initialisers and the tensors streamed to ``weights.bin``,
so nothing is held twice in memory, names and layouts are those of the module, and the model on
disk stays a few megabytes whatever the size of its weights. Of the one traced graph every dialect
makes a file of its own (see `kdrt_export.dialects`); all read the same weights.

The tracer is torch's TorchScript exporter. Its successor (``dynamo=True``) folds weights into
anonymous transposed constants and needs minutes where this needs seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from kdrt._version import __version__ as kdrt_version
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.dialects.build import cpu_dialect, onnxruntime_dialect, standard_dialect
from kdrt_export.dialects.invariants import split_invariants
from kdrt_export.errors import ExportError
from kdrt_export.onnx.mixed_precision import Float32Part, keep_float32
from kdrt_export.quantize.int8_weights import quantise_weights

OPSET = 20
MODEL_FILE = "model.onnx"
FUSED_FILE = "onnxruntime.onnx"
CPU_FILE = "onnxruntime-cpu.onnx"
PLAIN_FILE = "onnxruntime-plain.onnx"
INVARIANTS_FILE = "onnxruntime-invariants.onnx"
WEIGHTS_FILE = "weights.bin"
_ALIGNMENT = 4096
"""Weights start on page boundaries, so that engines can map them from the file."""

_ONNX_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int8: onnx.TensorProto.INT8,
}


@dataclass(frozen=True)
class OnnxFiles:
    """The files of one component: ``standard`` for every reader; ``fused`` with ONNX Runtime's own
    operators; ``cpu`` as its kernels for CPUs like it (None where that is no other); ``plain``
    likewise, at the component's usual sizes and without what its neutral inputs turn off (None
    where nothing does); ``invariants`` with what the last two read of its results (None where they
    read none). ``float32``: the modules and operators that were kept in it."""

    standard: Path
    fused: Path
    cpu: Path | None
    plain: Path | None
    invariants: Path | None
    float32: tuple[str, ...] = ()


def onnx_from_component(
    component: ExportComponent,
    dims: dict[str, int],
    folder: Path,
    *,
    int8_weights: bool = False,
    prefix: str = "",
    float32: Float32Part | None = None,
) -> OnnxFiles:
    """Trace ``component`` at the sizes ``dims`` and write it to ``folder``.

    The sizes only drive the tracer: every symbol of the spec stays dynamic.

    Args:
        component: the network, rewritten.
        dims: a size for every symbol.
        folder: where its files go.
        int8_weights: store the large weights as bytes; see
            :mod:`kdrt_export.quantize.int8_weights`.
        prefix: stands before the names of the graphs, which then read the weights that are there
            for another component.
        float32: stays in it, if the network is cast to half precision.

    Raises:
        onnx.checker.ValidationError: the result is not valid ONNX.
        ExportError: the other component does not have these weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    traced = trace(component, dims)
    tensors, kept = weights_of(component), list[str]()
    whole: dict[str, torch.Tensor] = {}
    if float32 is not None:
        whole, kept = keep_float32(traced, float32, tensors)
        tensors |= whole
    if int8_weights:
        proto = ir.to_proto(traced)
        rest = {name: tensor for name, tensor in tensors.items() if name not in whole}
        tensors = quantise_weights(proto.graph, rest) | whole
        traced = ir.from_proto(proto)
    weights = _take_weights(traced.graph, component)
    if prefix:
        _share_weights(weights, tensors, folder / MODEL_FILE)
    else:
        _write_weights(weights, tensors, folder / WEIGHTS_FILE)
    for value in weights:
        traced.graph.register_initializer(value)
    fused = onnxruntime_dialect(traced, optional=True)
    cpu, plain = cpu_dialect(fused, component.image()), None
    if component.neutral:
        plain = onnxruntime_dialect(traced, optional=False)
        plain = cpu_dialect(plain, component.image(usual=True)) or plain
    # The same of both: what one can do without does not follow from these inputs.
    of_both = [split_invariants(model, component.varying) for model in (cpu, plain) if model]
    invariants = next((model for model in of_both if model), None)
    return OnnxFiles(
        write_graph(standard_dialect(traced), component, folder / (prefix + MODEL_FILE)),
        write_graph(fused, component, folder / (prefix + FUSED_FILE)),
        write_graph(cpu, component, folder / (prefix + CPU_FILE)) if cpu else None,
        write_graph(plain, component, folder / (prefix + PLAIN_FILE)) if plain else None,
        write_graph(invariants, component, folder / (prefix + INVARIANTS_FILE))
        if invariants
        else None,
        tuple(kept),
    )


def trace(component: ExportComponent, dims: dict[str, int]) -> ir.Model:
    """The graph of a component with its weights as inputs, before any dialect."""
    return _clean(_traced(component, dims))


def _traced(component: ExportComponent, dims: dict[str, int]) -> onnx.ModelProto:
    spec = component.spec
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            component,
            component.example_inputs(dims),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes file objects too
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_axes={t.name: _dynamic_axes(t) for t in spec.inputs + spec.outputs},
            opset_version=OPSET,
            export_params=False,
            keep_initializers_as_inputs=True,
            do_constant_folding=False,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def _dynamic_axes(tensor: TensorSpec) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(tensor.shape) if isinstance(size, str)}


def _clean(proto: onnx.ModelProto) -> ir.Model:
    """Merge repeated constants and expressions, drop what nothing reads and all metadata."""
    model = ir.from_proto(proto)
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
    return model


def write_graph(model: ir.Model, component: ExportComponent, path: Path) -> Path:
    """Write a dialect of a component's graph, whose weights are declared, and return the file."""
    proto = ir.to_proto(model)
    _name_dimensions(proto, component)
    return write_proto(proto, path)


def write_proto(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a graph whose weights are there already, without all that no engine reads, and return
    the file.

    Raises:
        onnx.checker.ValidationError: it is not valid ONNX.
    """
    proto.producer_name, proto.producer_version = "kdrt", kdrt_version
    for node in proto.graph.node:
        del node.metadata_props[:]
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString())
    if all(file.stat().st_nlink == 1 for file in weight_files(proto, path.parent)):
        onnx.checker.check_model(str(path), full_check=False)
    else:
        # The checker takes a file of weights with two names for an attack; here it is the one of
        # the bundle that is about to be replaced.
        onnx.checker.check_model(_without_weights(proto), full_check=False)
    return path


def weight_files(proto: onnx.ModelProto, folder: Path) -> set[Path]:
    """The files with the weights of a graph that lies in ``folder``."""
    return {
        folder / entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that takes its weights as inputs."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    weights = [t for t in copied.graph.initializer if t.external_data]
    for tensor in weights:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        copied.graph.input.append(value)
        copied.graph.initializer.remove(tensor)
    return copied


def _name_dimensions(graph: onnx.ModelProto, component: ExportComponent) -> None:
    """Put the spec's symbols on the inputs and outputs, products included."""
    tensors = {t.name: t for t in component.spec.inputs + component.spec.outputs}
    for value in [*graph.graph.input, *graph.graph.output]:
        if value.name not in tensors:
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in tensors[value.name].shape:
            if isinstance(size, int):
                shape.dim.add().dim_value = size
            else:
                shape.dim.add().dim_param = size


def weights_of(component: ExportComponent) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a component, by name."""
    return {
        **dict(component.named_parameters(remove_duplicate=False)),
        **dict(component.named_buffers(remove_duplicate=False)),
    }


def _take_weights(graph: ir.Graph, component: ExportComponent) -> list[ir.Value]:
    """The weights that the graph reads, which are inputs of it no more."""
    declared = {tensor.name for tensor in component.spec.inputs}
    weights = [value for value in graph.inputs if value.name not in declared]
    for value in weights:
        graph.inputs.remove(value)
    return weights


def _write_weights(
    weights: Sequence[ir.Value], tensors: Mapping[str, torch.Tensor], file: Path
) -> None:
    """Write these weights to ``file``, and declare them as stored there."""
    names = [str(value.name) for value in weights]
    stored = write_weights(((name, tensors[name]) for name in names), file)
    for value in weights:
        value.const_value = stored[str(value.name)]


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a file holds it, of a type that PyTorch may not have.

    Attributes:
        content: uint8, its bytes.
        dtype: of its elements.
        shape: its dimensions.
    """

    content: torch.Tensor
    dtype: ir.DataType
    shape: tuple[int, ...]


def write_weights(
    tensors: Iterable[tuple[str, torch.Tensor | RawTensor]], file: Path
) -> dict[str, ir.ExternalTensor]:
    """Write tensors to ``file``, one after the other, and return what says in a graph that they are
    there, by name."""
    with file.open("wb") as stream:
        return {name: _store(name, tensor, stream, file) for name, tensor in tensors}


def _share_weights(
    weights: Sequence[ir.Value], tensors: Mapping[str, torch.Tensor], other: Path
) -> None:
    """Declare these weights as stored where the graph ``other`` has them."""
    stored = stored_weights(other)
    for value in weights:
        assert value.name is not None
        tensor, there = tensors[value.name], stored.get(value.name)
        if there is None or (there.dtype, there.shape) != (tensor.dtype, tuple(tensor.shape)):
            raise ExportError(
                f"{other.parent} does not hold {value.name} as this network has it; export the "
                "model again"
            )
        value.const_value = _external(
            value.name,
            _onnx_type(tensor.dtype),
            there.shape,
            there.file,
            there.offset,
            there.size,
        )


def _store(
    name: str, tensor: torch.Tensor | RawTensor, stream: io.BufferedWriter, file: Path
) -> ir.ExternalTensor:
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    offset = stream.tell()
    if isinstance(tensor, torch.Tensor):
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        tensor = RawTensor(raw, _onnx_type(tensor.dtype), tuple(tensor.shape))
    content = tensor.content.contiguous().view(-1)
    stream.write(content.numpy().data)
    return _external(name, tensor.dtype, tensor.shape, file, offset, content.numel())


def _onnx_type(dtype: torch.dtype) -> ir.DataType:
    return ir.DataType(_ONNX_TYPES[dtype])


def _external(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], file: Path, offset: int, length: int
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file.name,
        offset,
        length,
        dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=file.parent,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every size it sees as a Python number: here they are meant."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
