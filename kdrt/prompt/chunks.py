"""A prompt with emphasis in chunks, none longer than a text encoder reads at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kdrt.errors import InvalidRequestError

MAX_CHUNKS = 128
"""Of a prompt: with 75 tokens each, far more than the longest that web UIs are given."""


class Piece(NamedTuple):
    """Ids that belong together, one of the tokenizer's or all those of a learned token, and their
    weight."""

    ids: tuple[int, ...]
    weight: float


Chunk = list[tuple[int, float]]
"""Ids and their weights."""


def in_chunks(
    sections: Iterable[Iterable[Piece]], room: int, comma: int | None, comma_backtrack: int
) -> list[Chunk]:
    """The chunks of a prompt.

    Args:
        sections: what stands between two BREAKs, each of which starts a new chunk.
        room: how many ids a chunk holds.
        comma: the id of a comma; None where the tokenizer has none.
        comma_backtrack: what follows the last comma of a full chunk moves on to the next, if it is
            no more ids than this.

    Raises:
        InvalidRequestError: they are more than any UNet could attend to.
    """
    chunks = [
        chunk for section in sections for chunk in _split(section, room, comma, comma_backtrack)
    ]
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # a BREAK at the end starts nothing
    if len(chunks) > MAX_CHUNKS:
        raise InvalidRequestError(
            f"a prompt is read in {len(chunks)} chunks, by its length and its BREAKs, and at "
            f"most {MAX_CHUNKS} are allowed; shorten it"
        )
    return chunks


def _split(
    section: Iterable[Piece], room: int, comma: int | None, comma_backtrack: int
) -> list[Chunk]:
    """The chunks of one section, at least one. A learned token is not torn apart, unless no chunk
    could hold it."""
    chunks: list[Chunk] = [[]]
    last_comma: int | None = None  # where it is, in the last chunk
    for piece in section:
        whole = [piece.ids] if len(piece.ids) <= room else [(id_,) for id_ in piece.ids]
        for ids in whole:
            chunk = chunks[-1]
            if len(chunk) == room and ids != (comma,) and last_comma is not None:
                after = last_comma + 1
                if room - last_comma <= comma_backtrack:
                    chunks[-1], moved = chunk[:after], chunk[after:]
                    chunks.append(moved)
                    last_comma = None
            if len(chunks[-1]) + len(ids) > room:
                chunks.append([])
                last_comma = None
            if ids == (comma,):
                last_comma = len(chunks[-1])
            chunks[-1] += [(id_, piece.weight) for id_ in ids]
    return chunks
