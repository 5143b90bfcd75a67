"""What the UNet is told of images from different requests, kept on its device until it is asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdrt.bundle.components import PAG_INPUT, is_residual
from kdrt.denoise.bound_unet import write_conditioning
from kdrt.denoise.controls import ControlEngines, ControlStore
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.regional import no_regions
from kdrt_engines import Engine
from kdrt_engines.torch_eager import allocate

_NOT_STORED = ("sample", "timestep", PAG_INPUT)
"""Inputs that change from step to step, or follow from what the row is."""

UNCONDITIONAL, CONDITIONAL, FIRST_REGION = range(3)
"""Parts of an image, and the places of what is stored of them."""


class ImageShape(NamedTuple):
    """What images have in common that share a UNet: rows and columns of the latents, and L, the
    length of the conditioning."""

    height: int
    width: int
    tokens: int


class ConditioningStore:
    """What the UNet is told of the images in S slots, on its device.

    Inputs without a batch are the same for all images that share a UNet.

    Args:
        unet: the engine.
        slots: S.
        shape: of the images.
        control_engines: of the controls that all of them have; None is none.

    Attributes:
        rows: by input; those of a slot follow each other.
        stride: how many of them a slot has.
        shared: the inputs without a batch.
        extra: of the sample, ``[S, C', h, w]``; None where the UNet takes no more than latents.
        region: what is known of the images; None until some image has such a part.
        controls: what the controls are told; None is none.
        weights: of prompts, ``[S, 1 + MAX_REGIONS, 1, h, w]``; None until some image has regions.
    """

    def __init__(
        self,
        unet: Engine,
        slots: int,
        shape: ImageShape,
        control_engines: ControlEngines | None = None,
    ) -> None:
        told = tuple(
            t for t in unet.spec.inputs if t.name not in _NOT_STORED and not is_residual(t.name)
        )
        dims = {"B": FIRST_REGION * slots, "L": shape.tokens, "h": shape.height, "w": shape.width}
        stored = allocate(told, dims, unet.device)
        names = {tensor.name for tensor in told if tensor.shape[:1] == ("B",)}
        self.rows = {name: tensor for name, tensor in stored.items() if name in names}
        self.stride = FIRST_REGION
        self.shared = {name: tensor for name, tensor in stored.items() if name not in names}
        dims["B"] = slots
        _, channels, *size = unet.spec.outputs[0].resolve(dims)
        self._latents = (slots, channels, *size)
        self._device = unet.device
        extra = unet.spec.input("sample").resolve(dims)[1] - channels
        self.extra: Tensor | None = None
        if extra:
            self.extra = torch.zeros(slots, extra, *size, device=unet.device)
        self.control_engines = control_engines
        self.controls: ControlStore | None = None
        if control_engines is not None:
            self.controls = ControlStore(control_engines, slots, dims, unet.device)
        self.region: KnownRegion | None = None
        self.weights: Tensor | None = None

    @torch.no_grad()
    def write(self, slot: int, told: DenoiserInputs) -> None:
        """Write what the UNet is told of one image, in place of what the slot held."""
        # A perturbed part is told the same as the conditional one.
        parts = told.parts._replace(perturbed=False)
        self._reserve(FIRST_REGION + parts.regions)
        first = self.stride * slot + (UNCONDITIONAL if parts.unconditional else CONDITIONAL)
        rows = slice(first, first + parts.rows)
        inputs = {name: tensor[rows] for name, tensor in self.rows.items()}
        write_conditioning({**inputs, **self.shared}, told, parts)
        self._write_weights(slot, told)
        if self.controls is not None:
            self.controls.write(slot, told.controls)
        if self.extra is not None:
            if told.extra_channels is None:
                self.extra[slot].zero_()
            else:
                self.extra[slot].copy_(told.extra_channels[0])
        if told.known_region is not None and self.region is None:
            latents = torch.zeros(self._latents, device=self._device)
            self.region = KnownRegion(latents, torch.ones_like(latents[:, :1]))
        if self.region is not None:
            # Where all is repainted nothing of the known latents is taken.
            if told.known_region is None:
                self.region.mask[slot].fill_(1)
            else:
                self.region.mask[slot].copy_(told.known_region.mask[0])
                self.region.latents[slot].copy_(told.known_region.latents[0])

    def _write_weights(self, slot: int, told: DenoiserInputs) -> None:
        if told.regions is not None and self.weights is None:
            slots, _, height, width = self._latents
            self.weights = no_regions(slots, height, width, self._device)
        if self.weights is not None:
            weights = self.weights[slot].zero_()
            if told.regions is None:
                weights[0] = 1
            else:
                weights[: 1 + told.parts.regions].copy_(told.regions.weights[0])

    def _reserve(self, stride: int) -> None:
        """Have so many rows for each slot. No tick that is captured reads them."""
        if stride <= self.stride:
            return
        for name, old in self.rows.items():
            new = old.new_zeros(len(old) // self.stride * stride, *old.shape[1:])
            by_slot = new.view(-1, stride, *old.shape[1:])
            by_slot[:, : self.stride] = old.view(-1, self.stride, *old.shape[1:])
            self.rows[name] = new
        self.stride = stride
