"""Networks that enlarge images, such as ESRGAN, run in overlapping tiles.

What such a network makes of a pixel depends on those around it, so that the rim of a tile lacks
context. A margin of it is thrown away, and over as much again a tile is faded into the next: where
the network sees no further than the margin, the image is the one that it makes of the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.bundle import UpscalerFacts
from kdrt.common.log import timed
from kdrt.errors import NonFiniteError
from kdrt_engines import Binding, Engine

_logger = logging.getLogger(__name__)


class Upscaler:
    """A network that enlarges images.

    Args:
        engine: its component.
        facts: what the bundle says of it.
    """

    def __init__(self, engine: Engine, facts: UpscalerFacts) -> None:
        self._engine = engine
        self._facts = facts
        self._bindings: dict[tuple[int, int], Binding] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Enlarge ``image [1, 3, h, w]`` in [0, 1] to float32 ``[1, 3, scale·h, scale·w]`` in
        [0, 1].

        Raises:
            NonFiniteError: a pixel is not finite.
            ShapeError: the engine does not allow this size.
        """
        rows, columns = (list(_stretches(side, self._facts)) for side in image.shape[2:])
        with timed(_logger, "enlarged an image", self._engine.device):
            enlarged = self._in_tiles(image, rows, columns)
        if not bool(torch.isfinite(enlarged).all()):
            raise NonFiniteError(
                "the upscaler gave pixels that are not finite, as it does where it overflows in "
                "float16; export the model with --precision fp32 or bf16, or ask for another "
                "hires_upscaler"
            )
        return enlarged.clamp_(0, 1)

    def _in_tiles(self, image: Tensor, rows: list[_Stretch], columns: list[_Stretch]) -> Tensor:
        if len(rows) == len(columns) == 1:
            return self._run(image).to(torch.float32, copy=True)
        scale = self._facts.scale
        height, width = (scale * side for side in image.shape[2:])
        enlarged = torch.zeros(1, 3, height, width, device=self._engine.device)
        weights = torch.zeros(height, width, device=self._engine.device)
        for row in rows:
            for column in columns:
                part = image[:, :, row.start : row.stop, column.start : column.stop]
                weight = torch.outer(row.weights(scale), column.weights(scale)).to(weights.device)
                place = row.enlarged(scale), column.enlarged(scale)
                enlarged[:, :, *place].addcmul_(self._run(part).float(), weight)
                weights[*place] += weight
        return enlarged.div_(weights)

    def _run(self, image: Tensor) -> Tensor:
        """``[1, 3, h, w]`` through the network; the next run overwrites the result."""
        size = (image.shape[2], image.shape[3])
        binding = self._bindings.get(size)
        if binding is None:
            binding = self._engine.bind(B=1, H=size[0], W=size[1])
            self._bindings[size] = binding
        binding.inputs["image"].copy_(image)
        binding.run()
        return binding.outputs["enlarged"]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A tile along one axis, in pixels: it covers ``[start, stop)``.

    Attributes:
        start, stop: see above.
        before, after: whether there is another tile there.
        margin: pixels at such an end that do not count; over as many more its weight grows.
    """

    start: int
    stop: int
    before: bool
    after: bool
    margin: int

    def enlarged(self, scale: int) -> slice:
        return slice(scale * self.start, scale * self.stop)

    def weights(self, scale: int) -> Tensor:
        """float32 ``[scale · (stop - start)]``: how much each of its pixels counts."""
        length, margin = scale * (self.stop - self.start), scale * self.margin
        weights = torch.ones(length)
        if margin:
            grown = ((torch.arange(length) - margin + 1) / (margin + 1)).clamp(0, 1)
            if self.before:
                weights *= grown
            if self.after:
                weights *= grown.flip(0)
        return weights


def _stretches(length: int, facts: UpscalerFacts) -> Iterator[_Stretch]:
    """Tiles of one size that cover ``length`` pixels; the last one ends where the image does."""
    if length <= facts.tile:
        yield _Stretch(0, length, before=False, after=False, margin=0)
        return
    last = length - facts.tile
    stride = facts.tile - 3 * facts.margin
    for start in [*range(0, last, stride), last]:
        yield _Stretch(
            start, start + facts.tile, before=start > 0, after=start < last, margin=facts.margin
        )
