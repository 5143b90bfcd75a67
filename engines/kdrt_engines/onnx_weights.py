"""The weights an ONNX model keeps in a file beside it, found without the package ``onnx``.

Of the model only the list of external initialisers matters here. Protocol buffers are simple
enough to walk for that: a message is a row of fields, each a number, a kind and a value.
Field numbers are those of onnx.proto3: ModelProto.graph 7, GraphProto.initializer 5,
TensorProto.dims 1, data_type 2, name 8, external_data 13, StringStringEntryProto.key 1, value 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdrt_engines.errors import EngineError

_DTYPES = {
    1: torch.float32,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
    16: torch.bfloat16,
}
"""onnx.TensorProto.DataType."""


@dataclass(frozen=True)
class StoredWeight:
    """One tensor in a weights file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own."""
        count = math.prod(self.shape) * self.dtype.itemsize
        raw = np.fromfile(self.file, np.uint8, count, offset=self.offset)
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)


def stored_weights(model: Path) -> dict[str, StoredWeight]:
    """The external initialisers of an ONNX file, by name.

    Raises:
        EngineError: the file cannot be read, or is no ONNX model.
    """
    try:
        content = memoryview(model.read_bytes())
        tensors = [
            _stored(tensor, model.parent)
            for graph in _messages(content, 7)
            for tensor in _messages(graph, 5)
        ]
    except (OSError, IndexError, ValueError, KeyError) as error:
        raise EngineError(f"{model} is no readable ONNX model; export it again") from error
    return {name: weight for name, weight in tensors if weight is not None}


def _stored(tensor: memoryview, folder: Path) -> tuple[str, StoredWeight | None]:
    name, dtype, dims, place = "", 0, list[int](), dict[str, str]()
    for field, value in _fields(tensor):
        if field == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif field == 2 and isinstance(value, int):
            dtype = value
        elif field == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif field == 13 and not isinstance(value, int):
            key, *text = (str(part, "utf-8") for n in (1, 2) for part in _messages(value, n))
            place[key] = "".join(text)
    if not place:
        return name, None
    weight = StoredWeight(
        _DTYPES[dtype], tuple(dims), folder / place["location"], int(place.get("offset", 0))
    )
    return name, weight


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message: its number, and a whole number or the bytes of its value."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}[kind]
        yield tag >> 3, message[position : position + size]
        position += size


def _varints(packed: memoryview) -> Iterator[int]:
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
