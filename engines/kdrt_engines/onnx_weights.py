"""What an ONNX model says of itself, found without the package ``onnx``: its inputs and outputs,
and the weights it keeps in files beside it.

Protocol buffers are simple enough to walk for that: a message is a row of fields, each a number, a
kind and a value. Field numbers are those of onnx.proto3. The file may come from a stranger: lengths
are checked, nesting is bounded, and weights are in a file beside the model or refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from kdrt_engines.errors import EngineError
from kdrt_engines.regular_files import open_regular, read_regular

_DTYPES = {
    1: torch.float32,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
    16: torch.bfloat16,
}
"""onnx.TensorProto.DataType."""

_MAX_BYTES = 2**31
"""What a protocol buffer can hold at most."""

_DEEPEST = 32
"""Graphs inside attributes inside nodes, and so on: those of real models have a handful."""

_VARINT_BYTES = 10

_REFUSED = {
    "Loop": "which may never end",
    "Scan": "which may never end",
    "EPContext": "which is code for a device",
}
"""Operators that no network of a latent-diffusion model needs, and why they are not run."""

_LOCATION = re.compile(r"[\w .-]+(/[\w .-]+)*", re.ASCII)
"""Names of files; ONNX Runtime gives a meaning of its own to some that hold other characters."""

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
class StoredWeight:
    """One tensor in a weights file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            EngineError: the file does not hold it.
        """
        try:
            with open_regular(self.file) as file:
                file.seek(self.offset)
                raw = np.fromfile(file, np.uint8, self.size)
        except OSError as error:
            raise EngineError(f"cannot read {self.file}: {error.strerror}") from error
        if raw.nbytes != self.size:
            raise EngineError(f"{self.file} is too short for its graph; export it again")
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class GraphFacts:
    """What a model says of itself: the element type (onnx.TensorProto.DataType) of every input and
    output, and for each file beside it how many bytes that must have at least."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    files: dict[str, int]


def graph_facts(model: Path) -> GraphFacts:
    """Read what a model says of itself. Nothing else is opened.

    Raises:
        EngineError: it cannot be read, is no ONNX model, keeps weights elsewhere than beside it,
            or has functions or operators that kdrt does not run.
    """
    try:
        content = memoryview(read_regular(model, _MAX_BYTES))
        files: dict[str, int] = {}
        for kind, message in _walk(content, "model", 0):
            if kind == "node":
                _refuse_operators(message)
                continue
            _, dtype, dims, place = _tensor(message)
            if place:
                location, offset = _location(place), _number(place.get("offset", "0"))
                size = _number(place.get("length", "0"))
                if dtype in _DTYPES:
                    size = max(size, math.prod(dims) * _DTYPES[dtype].itemsize)
                files[location] = max(files.get(location, 0), offset + size)
        inputs, outputs, own = dict[str, int](), dict[str, int](), set[str]()
        for graph in _messages(content, 7):
            own |= {_tensor(tensor)[0] for tensor in _messages(graph, 5)}
            inputs |= map(_value, _messages(graph, 11))
            outputs |= map(_value, _messages(graph, 12))
    except (OSError, IndexError, ValueError, KeyError) as error:
        raise EngineError(
            f"{model} is no ONNX model that kdrt can use: {_reason(error)}"
        ) from error
    if not outputs:
        raise EngineError(f"{model} is no ONNX model that kdrt can use: it has no outputs")
    # Before version 4 of the format, initialisers were inputs too.
    return GraphFacts({k: v for k, v in inputs.items() if k not in own}, outputs, files)


def stored_weights(model: Path) -> dict[str, StoredWeight]:
    """The external initialisers of an ONNX file, by name.

    Raises:
        EngineError: the file cannot be read, or is no ONNX model.
    """
    try:
        content = memoryview(read_regular(model, _MAX_BYTES))
        tensors = [
            _stored(tensor, model.parent)
            for graph in _messages(content, 7)
            for tensor in _messages(graph, 5)
        ]
    except (OSError, IndexError, ValueError, KeyError) as error:
        raise EngineError(f"{model} is no readable ONNX model; export it again") from error
    return {name: weight for name, weight in tensors if weight is not None}


def _stored(tensor: memoryview, folder: Path) -> tuple[str, StoredWeight | None]:
    name, dtype, dims, place = _tensor(tensor)
    if not place:
        return name, None
    offset = _number(place.get("offset", "0"))
    return name, StoredWeight(_DTYPES[dtype], dims, folder / _location(place), offset)


def _tensor(tensor: memoryview) -> tuple[str, int, tuple[int, ...], dict[str, str]]:
    """The name, the element type, the shape, and where the data is if that is elsewhere."""
    name, dtype, dims, place = "", 0, list[int](), dict[str, str]()
    external = False
    for field, value in _fields(tensor):
        if field == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif field == 2 and isinstance(value, int):
            dtype = value
        elif field == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif field == 13 and not isinstance(value, int):
            key, text = (_text(value, number) for number in (1, 2))
            if key in place:
                raise ValueError(f"it says twice what the {key} of its weights is")
            place[key] = text
        elif field == 14 and value:
            external = True
    if external:
        place.setdefault("location", "")
    return name, dtype, tuple(dims), place


def _value(message: memoryview) -> tuple[str, int]:
    """The name and the element type of an input or output; 0 where it is no tensor."""
    kinds = [
        value
        for kind in _messages(message, 2)
        for tensor in _messages(kind, 1)
        for field, value in _fields(tensor)
        if field == 1 and isinstance(value, int)
    ]
    return _text(message, 1), kinds[-1] if kinds else 0


def _location(place: dict[str, str]) -> str:
    location = place["location"]
    if not _LOCATION.fullmatch(location) or ".." in location.split("/"):
        raise ValueError(f"it keeps weights in '{location}', which is not beside it")
    return PurePosixPath(location).as_posix()


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"'{text[:40]}' is no place in a file")
    return int(text)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if type(error) is ValueError else "it is damaged"


def _refuse_operators(node: memoryview) -> None:
    operator = _text(node, 4)
    if operator in _REFUSED:
        raise ValueError(f"it has the operator {operator}, {_REFUSED[operator]}")


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[tuple[str, memoryview]]:
    """Every node and tensor anywhere in a message."""
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    if kind in ("function", "training"):
        # Functions that call each other grow without bound where they are used.
        raise ValueError(f"it holds a {kind}, and the networks that kdrt exports do not")
    if kind in ("node", "tensor"):
        yield kind, message
    inside = _INSIDE.get(kind, {})
    for field, value in _fields(message) if inside else ():
        if field in inside and isinstance(value, memoryview):
            yield from _walk(value, inside[field], depth + 1)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == wanted and isinstance(value, memoryview):
            yield value


def _text(message: memoryview, wanted: int) -> str:
    """The string of a field; of several the last counts, as everywhere in protocol buffers."""
    parts = [*_messages(message, wanted)]
    return str(parts[-1], "utf-8") if parts else ""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message: its number, and a whole number or the bytes of its value. Those of
    a fixed size are left out: nothing that is asked for here has one."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >= 2**32:  # other readers cut it off, and see another field
            raise ValueError("it is damaged")
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}[kind]
        if position + size > len(message):
            raise ValueError("it is cut off")
        if kind == 2:
            yield tag >> 3, message[position : position + size]
        position += size


def _varints(packed: memoryview) -> Iterator[int]:
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    raise ValueError("it is damaged")
