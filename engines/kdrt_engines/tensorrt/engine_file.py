"""The header of a TensorRT-RTX engine file: its first 64 bytes.

Nothing on a machine without a GPU can load an engine, and the library's own validity check only
looks at the first four bytes. The layout below is not documented; it was read off files of
version 1.7 for many targets. A file that does not follow it is rejected, never guessed at.

    0   4 bytes    "vtrt"
    16  u64        length of the whole file
    24  4 × u8     version of TensorRT-RTX
    32  u32        bit mask of compute capabilities
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"vtrt"
SIZE = 64
_BITS = {75: 1, 80: 2, 86: 4, 89: 8, 120: 16, 121: 32}
_LAYOUT = struct.Struct("<4s12xQ4B4xI")


@dataclass(frozen=True)
class EngineHeader:
    """What a header says."""

    length: int
    version: str
    compute_capabilities: tuple[int, ...]


def read_header(content: memoryview) -> EngineHeader | None:
    """The header of an engine file, or None where there is none."""
    if content.nbytes < SIZE:
        return None
    magic, length, *version, mask = _LAYOUT.unpack_from(content)
    if magic != MAGIC:
        return None
    capabilities = tuple(number for number, bit in _BITS.items() if mask & bit)
    return EngineHeader(length, ".".join(map(str, version)), capabilities)
