"""A denoiser of images that come from different requests.

What the UNet is told of an image lies in a store: a row for its unconditional part, one for the
conditional one, and one for the prompt of each region. A denoiser for n images has a UNet of R
rows. It gathers into them what it is to be told: two rows of an image with guidance, one of an
image without, or outside of its guidance interval, one more with perturbed attention. Each
prediction goes back to its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdrt.bundle.components import PAG_INPUT
from kdrt.common.upload import upload, uploaded
from kdrt.denoise.bound_unet import BatchParts, UNetRows
from kdrt.denoise.conditioning_store import (
    CONDITIONAL,
    FIRST_REGION,
    UNCONDITIONAL,
    ConditioningStore,
    ImageShape,
)
from kdrt.denoise.controls import ControlStore
from kdrt.denoise.guidance import Guidance
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Parts, Predictions
from kdrt.denoise.regional import MAX_REGIONS, no_regions
from kdrt.denoise.scaling import Numbers, Scaling
from kdrt_engines import Engine

_PERTURBED = FIRST_REGION + MAX_REGIONS
_PARTS = _PERTURBED + 1

_PLACE = Numbers._fields.index("place")


class ImageRows(NamedTuple):
    """The rows of one image: its slot, and the parts that they are."""

    slot: int
    parts: Parts


class RowKind(NamedTuple):
    """What some image of a tick needs: operations that others do without.

    Attributes:
        guided: an unconditional part.
        rescales: `DenoiserInputs.guidance_rescale` above 0.
        unconditional: results without guidance.
        region: a part of it is known.
        apg, zero_star: a method of `kdrt.denoise.guidance_methods`.
        perturbed: a perturbed part.
        regions: so many parts for regions.
        controlled: controls that work.
    """

    guided: bool = False
    rescales: bool = False
    unconditional: bool = False
    region: bool = False
    apg: bool = False
    zero_star: bool = False
    perturbed: bool = False
    regions: int = 0
    controlled: bool = False

    def __or__(self, other: RowKind) -> RowKind:
        """What serves images of either."""
        either: Sequence[Any] = [max(a, b) for a, b in zip(self, other, strict=True)]
        return RowKind(*either)


class RowDenoiser:
    """A UNet of R rows for up to n images; a `kdrt.sampling.slots.SlotDenoise`.

    A call of :meth:`denoise` allocates nothing and reads nothing back, as
    `kdrt.denoise.denoiser.Denoiser`.

    Attributes:
        images: n.

    Args:
        unet: the engine.
        store: what it is told of the images.
        scaling: of the model.
        shape: of the images.
        images: n.
        rows: R.
        may_skip_gathering: what a call does may depend on the images that were taken; not so
            where calls are captured.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self,
        unet: Engine,
        store: ConditioningStore,
        scaling: Scaling,
        shape: ImageShape,
        *,
        images: int,
        rows: int,
        may_skip_gathering: bool = False,
    ) -> None:
        self.images = images
        self._store = store
        self._unet = UNetRows(unet, rows=rows, **shape._asdict(), controls=store.control_engines)
        prediction = self._unet.prediction
        like = prediction.new_zeros(images, *prediction.shape[1:])
        self._guidance = Guidance(like, skips_whole=scaling.skips_whole)
        self._scaled = torch.zeros_like(like)
        self._sample = prediction.new_zeros(prediction.shape)
        self._timestep = prediction.new_zeros(rows)
        self._like = like
        self._predictions: dict[int, Tensor] = {}
        # What is captured gathers always: it serves any images.
        self._may_skip_gathering = may_skip_gathering
        self._batches: dict[Parts, BatchParts] = {}
        self._whole: BatchParts | None = None
        self._numbers = like.new_zeros(images, len(Numbers._fields))
        self._told = Numbers.of_rows(self._numbers)
        # Made at once, and where all is repainted: a captured call that was told to heed regions
        # must heed those of images that come later.
        self._region = KnownRegion(torch.zeros_like(like), torch.ones_like(like[:, :1]))
        self._weights: Tensor | None = None
        self._weights_by_prompt: Sequence[Tensor] = ()
        self._unconditional: Tensor | None = None

        index = torch.zeros(2 * rows + _PARTS * images, dtype=torch.int64, device=unet.device)
        self._index = index
        self._image_of_row, self._stored_row, *self._row_of_part = torch.split(
            index, [rows, rows, *[images] * _PARTS]
        )

    @property
    def unconditional(self) -> Tensor:
        """The last results without guidance, ``[n, C, h, w]``; of images without guidance, the
        same as the others."""
        assert self._unconditional is not None  # asked for by the kind of the evaluation
        return self._unconditional

    @torch.no_grad()
    def take(self, images: Sequence[ImageRows]) -> None:
        """Gather what the UNet is told of these images, n at most, into its inputs."""
        store, rows = self._store, _rows_of(images)
        count = len(self._image_of_row)
        assert len(rows) <= count
        self._whole = self._batch_of(images) if len(rows) == count else None
        read = chain.from_iterable(self._rows_by_part(rows))
        # The rows left over compute what nobody reads.
        rows += [rows[0]] * (count - len(rows))
        stored = [images[row.image].slot * store.stride + row.stored for row in rows]
        upload(self._index, torch.tensor([*(row.image for row in rows), *stored, *read]))

        for name, tensor in store.rows.items():
            torch.index_select(tensor, 0, self._stored_row, out=self._unet.inputs[name])
        for name, tensor in store.shared.items():
            self._unet.inputs[name].copy_(tensor)
        if PAG_INPUT in self._unet.inputs:
            perturbed = [float(row.part == _PERTURBED) for row in rows]
            upload(self._unet.inputs[PAG_INPUT], torch.tensor(perturbed))
        if store.controls is not None:
            self._take_controls(store.controls, images, rows)
        if store.extra is None and store.region is None and store.weights is None:
            return
        slot_of_row = self._stored_row.div(store.stride, rounding_mode="floor")
        slots = slot_of_row.index_select(0, self._row_of_part[CONDITIONAL])
        if store.extra is not None:
            self._unet.extra.copy_(store.extra.index_select(0, slot_of_row))
        if store.region is not None:
            torch.index_select(store.region.latents, 0, slots, out=self._region.latents)
            torch.index_select(store.region.mask, 0, slots, out=self._region.mask)
        if store.weights is not None:
            torch.index_select(store.weights, 0, slots, out=self._made_weights())

    def _take_controls(
        self, store: ControlStore, images: Sequence[ImageRows], rows: Sequence[_Row]
    ) -> None:
        assert self._unet.controls is not None  # as it has their store
        slots = [images[row.image].slot for row in rows]
        is_conditional = [row.part != UNCONDITIONAL for row in rows]
        index = uploaded(torch.tensor([slots, is_conditional]), self._index.device)
        self._unet.controls.gather(store, *index)

    def _batch_of(self, images: Sequence[ImageRows]) -> BatchParts | None:
        """The parts of a batch of as many images as there can be, where all have the same ones:
        it needs no gathering."""
        parts = images[0].parts
        is_whole = len(images) == self.images and all(image.parts == parts for image in images)
        if not (is_whole and self._may_skip_gathering):
            return None
        if parts not in self._batches:
            self._batches[parts] = BatchParts(self._unet, parts)
        return self._batches[parts]

    def _rows_by_part(self, rows: Sequence[_Row]) -> list[list[int]]:
        """For each part the row of each image, which is the conditional one where it has none."""
        conditional = [0] * self.images
        for place, row in enumerate(rows):
            if row.part == CONDITIONAL:
                conditional[row.image] = place
        found = [conditional.copy() for _ in range(_PARTS)]
        for place, row in enumerate(rows):
            found[row.part][row.image] = place
        return found

    def _made_weights(self) -> Tensor:
        """Those of the images' prompts, ``[n, 1 + MAX_REGIONS, 1, h, w]``."""
        if self._weights is None:
            images, _, height, width = self._like.shape
            self._weights = no_regions(images, height, width, self._like.device)
            self._weights_by_prompt = self._weights.unbind(1)
        return self._weights

    def denoise(self, x: Tensor, numbers: Tensor, kind: RowKind) -> Tensor:
        """Denoise ``x [n, C, h, w]``, with the `Numbers` of each image as float32 ``[n, 12]``.
        Without gradients: that is for the caller to see to.

        Args:
            x: the states.
            numbers: see `kdrt.denoise.scaling.Numbers`.
            kind: what the images need together, or more.

        Returns:
            float32 ``[n, C, h, w]``, overwritten by the next call.
        """
        if numbers is not self._numbers:  # views of what callers give again and again
            self._numbers, self._told = numbers, Numbers.of_rows(numbers)
        told = self._told
        if self._whole is not None:
            predictions = self._whole.predict(
                x, told.c_in, told.timestep, told.place, controlled=kind.controlled
            )
        else:
            predictions = self._predict(x, told, kind)
        region = self._region if kind.region else None
        if kind.unconditional:
            without = predictions.unconditional
            if without is None:
                without = predictions.conditional
            self._unconditional = self._guidance.unconditional(x, without, told, region)
        if kind.regions:
            self._made_weights()
        return self._guidance.denoised(
            x,
            predictions,
            told,
            region,
            rescales=kind.rescales,
            apg=kind.apg,
            zero_star=kind.zero_star,
            weights=self._weights_by_prompt,
        )

    def _predict(self, x: Tensor, told: Numbers, kind: RowKind) -> Predictions:
        """The predictions of all images, gathered. What an image lacks of what others have is its
        conditional prediction."""
        unet = self._unet
        torch.mul(x, told.c_in, out=self._scaled)
        torch.index_select(self._scaled, 0, self._image_of_row, out=self._sample)
        unet.sample.copy_(self._sample)
        torch.index_select(self._numbers[:, 1], 0, self._image_of_row, out=self._timestep)
        unet.timestep.copy_(self._timestep)
        if unet.controls is not None:
            torch.index_select(self._numbers[:, _PLACE], 0, self._image_of_row, out=unet.place)
        unet.run(controlled=kind.controlled)
        regions = range(FIRST_REGION, FIRST_REGION + kind.regions)
        return Predictions(
            self._gathered(CONDITIONAL),
            self._gathered(UNCONDITIONAL) if kind.guided else None,
            tuple(self._gathered(part) for part in regions),
            self._gathered(_PERTURBED) if kind.perturbed else None,
        )

    def _gathered(self, part: int) -> Tensor:
        if part not in self._predictions:
            self._predictions[part] = torch.empty_like(self._like)
        into = self._predictions[part]
        return torch.index_select(self._unet.prediction, 0, self._row_of_part[part], out=into)

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return self._unet.held()


class _Row(NamedTuple):
    """A row of the UNet: the image it belongs to, by its place, the part that it is, and the
    part whose stored inputs it is told."""

    image: int
    part: int
    stored: int


def _rows_of(images: Sequence[ImageRows]) -> list[_Row]:
    """The rows of some images in the order of `kdrt.denoise.parts.Parts`."""
    rows = [
        _Row(place, part, CONDITIONAL if part == _PERTURBED else part)
        for place, image in enumerate(images)
        for part in _parts_of(image.parts)
    ]
    return sorted(rows, key=lambda row: row.part)


def _parts_of(parts: Parts) -> Iterator[int]:
    if parts.unconditional:
        yield UNCONDITIONAL
    yield CONDITIONAL
    yield from range(FIRST_REGION, FIRST_REGION + parts.regions)
    if parts.perturbed:
        yield _PERTURBED
