"""A denoiser of images that come from different requests.

What the UNet is told of an image lies in a store, two rows a slot: the unconditional half and the
conditional one. A denoiser for n images has a UNet of R rows. It gathers into them what it is to
be told: two rows of an image with guidance, one of an image without, or outside of its guidance
interval. Each prediction goes back to its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdrt.common.upload import upload
from kdrt.denoise.bound_unet import Halves, UNetRows, write_conditioning
from kdrt.denoise.guidance import Guidance
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.scaling import Numbers, Scaling
from kdrt_engines import Engine
from kdrt_engines.torch_eager import allocate

_STATE_INPUTS = ("sample", "timestep")
"""Inputs that change from step to step, and are not stored."""


class ImageShape(NamedTuple):
    """What images have in common that share a UNet: rows and columns of the latents, and L, the
    length of the conditioning."""

    height: int
    width: int
    tokens: int


class ImageRows(NamedTuple):
    """The rows of one image: its slot, and whether the unconditional half is one of them."""

    slot: int
    guided: bool


class RowKind(NamedTuple):
    """What some image of a tick needs: operations that others do without.

    Attributes:
        guided: an unconditional half.
        rescales: `DenoiserInputs.guidance_rescale` above 0.
        unconditional: results without guidance.
        region: a part of it is known.
        apg, zero_star: a method of `kdrt.denoise.guidance_methods`.
    """

    guided: bool = False
    rescales: bool = False
    unconditional: bool = False
    region: bool = False
    apg: bool = False
    zero_star: bool = False

    def __or__(self, other: RowKind) -> RowKind:
        """What serves images of either."""
        return RowKind(*(a or b for a, b in zip(self, other, strict=True)))


class ConditioningStore:
    """What the UNet is told of the images in S slots, on its device.

    Inputs without a batch are the same for all images that share a UNet.

    Args:
        unet: the engine.
        slots: S.
        shape: of the images.
    """

    def __init__(self, unet: Engine, slots: int, shape: ImageShape) -> None:
        told = tuple(t for t in unet.spec.inputs if t.name not in _STATE_INPUTS)
        dims = {"B": 2 * slots, "L": shape.tokens, "h": shape.height, "w": shape.width}
        stored = allocate(told, dims, unet.device)
        names = {tensor.name for tensor in told if tensor.shape[:1] == ("B",)}
        self.rows = {name: tensor for name, tensor in stored.items() if name in names}
        self.shared = {name: tensor for name, tensor in stored.items() if name not in names}
        dims["B"] = slots
        _, channels, *size = unet.spec.outputs[0].resolve(dims)
        self._latents = (slots, channels, *size)
        self._device = unet.device
        extra = unet.spec.input("sample").resolve(dims)[1] - channels
        self.extra: Tensor | None = None
        if extra:
            self.extra = torch.zeros(slots, extra, *size, device=unet.device)
        self.region: KnownRegion | None = None

    @torch.no_grad()
    def write(self, slot: int, told: DenoiserInputs) -> None:
        """Write what the UNet is told of one image, in place of what the slot held."""
        rows = slice(2 * slot + 2 - len(told.halves), 2 * slot + 2)
        inputs = {name: tensor[rows] for name, tensor in self.rows.items()}
        write_conditioning({**inputs, **self.shared}, told, told.halves)
        if self.extra is not None:
            if told.extra_channels is None:
                self.extra[slot].zero_()
            else:
                self.extra[slot].copy_(told.extra_channels[0])
        if told.known_region is not None and self.region is None:
            latents = torch.zeros(self._latents, device=self._device)
            self.region = KnownRegion(latents, torch.ones_like(latents[:, :1], dtype=torch.bool))
        if self.region is not None:
            # Where all is repainted nothing of the known latents is taken.
            if told.known_region is None:
                self.region.mask[slot].fill_(True)
            else:
                self.region.mask[slot].copy_(told.known_region.mask[0])
                self.region.latents[slot].copy_(told.known_region.latents[0])


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
        self._unet = UNetRows(unet, rows=rows, **shape._asdict())
        prediction = self._unet.prediction
        like = prediction.new_zeros(images, *prediction.shape[1:])
        self._guidance = Guidance(like, skips_whole=scaling.skips_whole)
        self._scaled = torch.zeros_like(like)
        self._sample = prediction.new_zeros(prediction.shape)
        self._timestep = prediction.new_zeros(rows)
        self._predictions = torch.zeros_like(like), torch.zeros_like(like)
        # What is captured gathers always: it serves any images.
        self._halves: Halves | None = None
        if may_skip_gathering and rows in (images, 2 * images):
            self._halves = Halves(self._unet, rows // images)
        self._is_whole = False
        self._numbers = like.new_zeros(images, len(Numbers._fields))
        self._told = Numbers.of_rows(self._numbers)
        # Made at once, and where all is repainted: a captured call that was told to heed regions
        # must heed those of images that come later.
        self._region = KnownRegion(
            torch.zeros_like(like), torch.ones_like(like[:, :1], dtype=torch.bool)
        )
        self._unconditional: Tensor | None = None

        index = torch.zeros(2 * rows + 2 * images, dtype=torch.int64, device=unet.device)
        self._index = index
        self._image_of_row, self._stored_row, *self._row_of_half = torch.split(
            index, [rows, rows, images, images]
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
        rows, count = len(self._image_of_row), len(self._row_of_half[0])
        guided = [place for place, image in enumerate(images) if image.guided]
        conditional = list(range(len(guided), len(guided) + len(images)))
        owners = [*guided, *range(len(images))]
        stored = [2 * images[place].slot for place in guided]
        stored += [2 * image.slot + 1 for image in images]
        unconditional = list(conditional)
        for row, place in enumerate(guided):
            unconditional[place] = row
        assert len(owners) <= rows
        # Whole halves without a row to spare need no gathering.
        self._is_whole = len(images) == count and len(owners) == rows
        # The rows left over compute what nobody reads.
        owners += [0] * (rows - len(owners))
        stored += [stored[0]] * (rows - len(stored))
        spare = [0] * (count - len(images))
        index = torch.tensor([*owners, *stored, *unconditional, *spare, *conditional, *spare])
        upload(self._index, index)

        store = self._store
        for name, tensor in store.rows.items():
            torch.index_select(tensor, 0, self._stored_row, out=self._unet.inputs[name])
        for name, tensor in store.shared.items():
            self._unet.inputs[name].copy_(tensor)
        if store.extra is not None or store.region is not None:
            slot_of_row = self._stored_row.div(2, rounding_mode="floor")
            if store.extra is not None:
                self._unet.extra.copy_(store.extra.index_select(0, slot_of_row))
            if store.region is not None:
                slots = slot_of_row.index_select(0, self._row_of_half[1])
                torch.index_select(store.region.latents, 0, slots, out=self._region.latents)
                torch.index_select(store.region.mask, 0, slots, out=self._region.mask)

    def denoise(self, x: Tensor, numbers: Tensor, kind: RowKind) -> Tensor:
        """Denoise ``x [n, C, h, w]``, with the `Numbers` of each image as float32 ``[n, 9]``.
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
        predictions: Sequence[Tensor]
        if self._halves is not None and self._is_whole:
            predictions = self._halves.predict(x, told.c_in, told.timestep)
        else:
            predictions = self._predict(x, told)
        if not kind.guided:
            predictions = predictions[-1:]
        region = self._region if kind.region else None
        if kind.unconditional:
            self._unconditional = self._guidance.unconditional(x, predictions[0], told, region)
        return self._guidance.denoised(
            x,
            predictions,
            told,
            region,
            rescales=kind.rescales,
            apg=kind.apg,
            zero_star=kind.zero_star,
        )

    def _predict(self, x: Tensor, told: Numbers) -> tuple[Tensor, ...]:
        """The unconditional and the conditional predictions of all images, gathered."""
        unet = self._unet
        torch.mul(x, told.c_in, out=self._scaled)
        torch.index_select(self._scaled, 0, self._image_of_row, out=self._sample)
        unet.sample.copy_(self._sample)
        torch.index_select(self._numbers[:, 1], 0, self._image_of_row, out=self._timestep)
        unet.timestep.copy_(self._timestep)
        unet.run()
        for row_of, prediction in zip(self._row_of_half, self._predictions, strict=True):
            torch.index_select(unet.prediction, 0, row_of, out=prediction)
        return self._predictions

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return self._unet.held()
