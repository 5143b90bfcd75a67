"""The wire format of protocol buffers: enough to walk a message whose field numbers are known.

A message is a row of fields, each a number, a wire type and a value. The bytes may come from a
stranger, so every length is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_BYTES = 2**31
"""The most a protocol buffer can hold."""

_VARINT_BYTES = 10


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message: its number, and an integer or the bytes of its value.

    Fields of a fixed size are skipped: none of those that kdrt reads has one.

    Raises:
        ValueError, IndexError, KeyError: the message is damaged.
    """
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


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The values of all fields with this number: messages, strings or bytes."""
    for field, value in fields(message):
        if field == number and isinstance(value, memoryview):
            yield value


def text(message: memoryview, number: int) -> str:
    """The string of a field; of several the last counts, as everywhere in protocol buffers."""
    parts = [*messages(message, number)]
    return str(parts[-1], "utf-8") if parts else ""


def varints(packed: memoryview) -> Iterator[int]:
    """The integers of a packed field."""
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
