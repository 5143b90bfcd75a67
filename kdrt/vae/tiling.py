"""Large images through a VAE in overlapping tiles, blended where they meet.

The geometry is that of diffusers' ``AutoencoderKL``: tiles start every ``stride`` latents from the
top left, each is faded over the overlap from the tile above it and then from the one to its left,
and the last ones are cut off at the edge. Where a tile size divides by four and the overlap is a
quarter, results are equal to diffusers'. (Elsewhere diffusers rounds strides in latents and in
pixels apart, and gives an image of another size; here the overlap is a whole number of latents.)

A tile is not the image: normalisation and attention see only their tile. Neighbours agree
closely but not exactly, which is why they are blended, and why a tiled image differs a little
from one decoded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from kdrt.common.validation import check_int
from kdrt.errors import InvalidRequestError

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How a VAE is tiled.

    Attributes:
        size: side of a square tile, in latents.
        overlap: fraction of a tile that it shares with the next, from 0 to below 1.

    Raises:
        InvalidRequestError: a size below 1, or an overlap outside of its range.
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        check_int("the tile size", self.size, 1)
        if (
            isinstance(self.overlap, bool)
            or not isinstance(self.overlap, Real)
            or not 0 <= self.overlap < 1
        ):
            raise InvalidRequestError(
                f"the overlap of tiles must be from 0 to below 1, as 0.25 is, not {self.overlap!r}"
            )

    @property
    def stride(self) -> int:
        """Latents from the start of one tile to the start of the next."""
        return max(1, int(self.size * (1 - self.overlap)))

    def applies(self, height: int, width: int) -> bool:
        """Whether an image of this many latents is larger than a tile."""
        return max(height, width) > self.size


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tile along one axis, in latents: it covers ``[start, stop)``. ``context`` more latents
    before it are run and thrown away, where an engine takes no piece as short."""

    start: int
    stop: int
    context: int


def run_tiled(
    run: Run, source: Tensor, tiling: Tiling, *, scale_in: int, scale_out: int, least: int = 1
) -> Tensor:
    """Run a network tile by tile.

    Args:
        run: maps ``[B, C, scale_in·h, scale_in·w]`` to a new ``[B, D, scale_out·h, scale_out·w]``.
        source: ``[B, C, scale_in·H, scale_in·W]``.
        tiling: the tiles, in latents.
        scale_in: rows of the source for one latent: 1 to decode, the VAE's scale to encode.
        scale_out: rows of the result for one latent.
        least: the smallest side that ``run`` takes, in latents. Pieces cut short by the edge are
            run with that much of the image before them.

    Returns:
        ``[B, D, scale_out·H, scale_out·W]``, of the dtype of ``run``'s results.
    """
    rows = list(_pieces(source.shape[2] // scale_in, tiling, least))
    columns = list(_pieces(source.shape[3] // scale_in, tiling, least))
    faded = (tiling.size - tiling.stride) * scale_out
    kept = tiling.stride * scale_out
    result: Tensor | None = None
    above: list[Tensor] = []
    for row in rows:
        current: list[Tensor] = []
        for index, column in enumerate(columns):
            tile = _run_piece(run, source, row, column, scale_in, scale_out)
            if above:
                _fade(above[index], tile, faded, axis=2)
            if current:
                _fade(current[-1], tile, faded, axis=3)
            current.append(tile)
            if result is None:
                shape = (
                    *tile.shape[:2],
                    rows[-1].stop * scale_out,
                    columns[-1].stop * scale_out,
                )
                result = tile.new_empty(shape)
            cut = tile[:, :, :kept, :kept]
            top, left = row.start * scale_out, column.start * scale_out
            result[:, :, top : top + cut.shape[2], left : left + cut.shape[3]] = cut
        above = current
    assert result is not None  # an image has at least one tile
    return result


def _pieces(length: int, tiling: Tiling, least: int) -> Iterator[_Piece]:
    for start in range(0, length, tiling.stride):
        stop = min(start + tiling.size, length)
        context = min(start, max(0, least - (stop - start)))
        yield _Piece(start, stop, context)


def _run_piece(
    run: Run, source: Tensor, row: _Piece, column: _Piece, scale_in: int, scale_out: int
) -> Tensor:
    window = source[
        :,
        :,
        (row.start - row.context) * scale_in : row.stop * scale_in,
        (column.start - column.context) * scale_in : column.stop * scale_in,
    ]
    return run(window)[:, :, row.context * scale_out :, column.context * scale_out :]


def _fade(before: Tensor, tile: Tensor, extent: int, axis: int) -> None:
    """Fade in place from the end of ``before`` to ``tile``, linearly over ``extent``."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if extent == 0:
        return
    shape = [1, 1, 1, 1]
    shape[axis] = extent
    weight = (torch.arange(extent, dtype=torch.float64) / extent).reshape(shape)
    end = before.narrow(axis, before.shape[axis] - extent, extent)
    head = tile.narrow(axis, 0, extent)
    head.mul_(weight.to(head)).add_(end * (1 - weight).to(end))
