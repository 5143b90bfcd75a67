"""What an ONNX model says of itself, read without the package ``onnx``: inputs, outputs, and where
its weights are.

Field numbers are those of onnx.proto3. The file may come from a stranger: nesting is bounded, and
weights lie in a file beside the model or the model is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdrt_engines import protobuf
from kdrt_engines.dtypes import FROM_ONNX
from kdrt_engines.errors import EngineError
from kdrt_engines.regular_files import read_regular

DAMAGE = (OSError, IndexError, ValueError, KeyError)
"""What reading a damaged model raises."""

_MAX_DEPTH = 32
"""Graphs inside attributes inside nodes, and so on: those of real models have a handful."""

_REFUSED = {
    "Loop": "which may never end",
    "Scan": "which may never end",
    "EPContext": "which is code for a device",
}
"""Operators that no network of a latent-diffusion model needs, and why they are not run."""

_FILE_NAME = re.compile(r"[\w .-]+(/[\w .-]+)*", re.ASCII)
"""ONNX Runtime gives a meaning of its own to some names that hold other characters."""

# The fields of each message under which tensors can be, and the message that each field holds.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}


@dataclass(frozen=True)
class GraphFacts:
    """What a model says of itself: the element type (onnx.TensorProto.DataType) of every input and
    output, and for each file beside it how many bytes that must have at least."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    files: dict[str, int]


@dataclass(frozen=True)
class TensorFacts:
    """What a model says of one of its tensors.

    Attributes:
        name: of the initialiser; empty for a constant inside of a node.
        dtype: an onnx.TensorProto.DataType.
        shape: its dimensions.
        external: where its data is, as keys and values; empty if it is in the model.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    external: dict[str, str]

    def file(self) -> str:
        """The file with the data, relative to the model. Raises ValueError: it is elsewhere."""
        location = self.external["location"]
        if not _FILE_NAME.fullmatch(location) or ".." in location.split("/"):
            raise ValueError(f"it keeps weights in '{location}', which is not beside it")
        return PurePosixPath(location).as_posix()

    def offset(self) -> int:
        """The first byte of the data in its file."""
        return _integer(self.external.get("offset", "0"))

    def end(self) -> int:
        """The byte after the data in its file."""
        size = _integer(self.external.get("length", "0"))
        if self.dtype in FROM_ONNX:
            size = max(size, math.prod(self.shape) * FROM_ONNX[self.dtype].size)
        return self.offset() + size


def graph_facts(model: Path) -> GraphFacts:
    """Read what a model says of itself. Nothing else is opened.

    Raises:
        EngineError: it cannot be read, is no ONNX model, keeps weights elsewhere than beside it,
            or has functions or operators that kdrt does not run.
    """
    try:
        content = read_model(model)
        files: dict[str, int] = {}
        for kind, message in _walk(content, "model", 0):
            if kind == "node":
                _refuse_operators(message)
                continue
            tensor = _tensor(message)
            if tensor.external:
                name = tensor.file()
                files[name] = max(files.get(name, 0), tensor.end())
        inputs, outputs, own = dict[str, int](), dict[str, int](), set[str]()
        for graph in _graphs(content):
            own |= {_tensor(tensor).name for tensor in protobuf.messages(graph, 5)}
            inputs |= map(_value, protobuf.messages(graph, 11))
            outputs |= map(_value, protobuf.messages(graph, 12))
    except DAMAGE as error:
        raise EngineError(
            f"{model} is no ONNX model that kdrt can use: {_reason(error)}"
        ) from error
    if not outputs:
        raise EngineError(f"{model} is no ONNX model that kdrt can use: it has no outputs")
    # Before version 4 of the format, initialisers were inputs too.
    return GraphFacts({k: v for k, v in inputs.items() if k not in own}, outputs, files)


def read_model(model: Path) -> memoryview:
    """The bytes of a model's file. Raises OSError."""
    return memoryview(read_regular(model, protobuf.MAX_BYTES))


def initializers(content: memoryview) -> Iterator[TensorFacts]:
    """The initialisers of a model's graph; damage raises one of ``DAMAGE``."""
    for graph in _graphs(content):
        yield from map(_tensor, protobuf.messages(graph, 5))


def _graphs(content: memoryview) -> Iterator[memoryview]:
    return protobuf.messages(content, 7)


def _tensor(message: memoryview) -> TensorFacts:
    name, dtype, dims, external = "", 0, list[int](), dict[str, str]()
    is_external = False
    for field, value in protobuf.fields(message):
        if field == 1:
            dims += [value] if isinstance(value, int) else list(protobuf.varints(value))
        elif field == 2 and isinstance(value, int):
            dtype = value
        elif field == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif field == 13 and not isinstance(value, int):
            key, text = (protobuf.text(value, number) for number in (1, 2))
            if key in external:
                raise ValueError(f"it says twice what the {key} of its weights is")
            external[key] = text
        elif field == 14 and value:
            is_external = True
    if is_external:
        external.setdefault("location", "")
    return TensorFacts(name, dtype, tuple(dims), external)


def _value(message: memoryview) -> tuple[str, int]:
    """The name and the element type of an input or output; 0 where it is no tensor."""
    kinds = [
        value
        for kind in protobuf.messages(message, 2)
        for tensor in protobuf.messages(kind, 1)
        for field, value in protobuf.fields(tensor)
        if field == 1 and isinstance(value, int)
    ]
    return protobuf.text(message, 1), kinds[-1] if kinds else 0


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"'{text[:40]}' is no place in a file")
    return int(text)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if type(error) is ValueError else "it is damaged"


def _refuse_operators(node: memoryview) -> None:
    operator = protobuf.text(node, 4)
    if operator in _REFUSED:
        raise ValueError(f"it has the operator {operator}, {_REFUSED[operator]}")


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[tuple[str, memoryview]]:
    """Every node and tensor anywhere in a message."""
    if depth > _MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    if kind in ("function", "training"):
        # Functions that call each other grow without bound where they are used.
        raise ValueError(f"it holds a {kind}, and the networks that kdrt exports do not")
    if kind in ("node", "tensor"):
        yield kind, message
    inside = _INSIDE.get(kind, {})
    for field, value in protobuf.fields(message) if inside else ():
        if field in inside and isinstance(value, memoryview):
            yield from _walk(value, inside[field], depth + 1)
