"""A UNet bound to one batch: where its halves lie, and how it is fed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import write_image_prompt
from kdrt.bundle.components import DEEP_FEATURE
from kdrt.prompt import Conditioning
from kdrt_engines import Engine

Number = float | Tensor
"""A Python number, or one on the device, without dimensions."""

GUIDANCE_INPUT = "timestep_cond"
"""The input of distilled models, which take the guidance scale as an embedding."""


def host_number() -> Tensor:
    """A place for a factor of ``torch.mul``, which at every call makes a tensor of a Python number.
    Without dimensions it lies on the host, wherever the other factor is; of the other's dtype, in
    which the product is taken anyway, it is not converted either."""
    return torch.zeros((), dtype=torch.float32)


def guidance_embedding(guidance_scale: float, size: int) -> Tensor:
    """The guidance scale as sines and cosines, float32 ``[size]`` (Luo et al. 2023, "Latent
    Consistency Models", on w = guidance_scale − 1)."""
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32) / max(half - 1, 1)
    angles = 1000.0 * (guidance_scale - 1) * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(size - 2 * half)])


class BoundUNet:
    """A UNet at one size: one half, the conditional, or two with the unconditional in front.

    It is written with what belongs to two halves, and with one takes the last.

    Args:
        unet: the engine; the whole UNet, or the shallow one.
        images: B, the number of images.
        halves: 1 or 2.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.

    Attributes:
        extra_channels: channels of the sample beyond the latents'.
        predictions: of the halves, float32 ``[B, C, h, w]`` each: what the last run left.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self, unet: Engine, *, images: int, halves: int, height: int, width: int, tokens: int
    ) -> None:
        self._halves = halves
        self._binding = unet.bind(B=halves * images, L=tokens, h=height, w=width)

        # Views are made here, not in each step.
        inputs = self._binding.inputs
        channels = self._binding.outputs["noise_pred"].shape[1]
        self.extra_channels: int = inputs["sample"].shape[1] - channels
        self._extra = inputs["sample"][:, channels:].chunk(halves)
        self._samples = inputs["sample"][:, :channels].chunk(halves)
        self._timestep = inputs["timestep"]
        self._noise_pred = self._binding.outputs["noise_pred"]
        self._prediction = self._noise_pred
        if self._noise_pred.dtype != torch.float32:
            # Guidance amplifies differences: they must not be taken in half precision.
            self._prediction = torch.empty_like(self._noise_pred, dtype=torch.float32)
        self.predictions = self._prediction.chunk(halves)
        self._factor = host_number()

    def write(
        self,
        halves: Sequence[Conditioning],
        *,
        guidance_scale: float,
        time_ids: Tensor | None,
        freeu: Sequence[float],
    ) -> None:
        """Write all that does not change from step to step, as far as this network takes it."""
        halves = halves[-self._halves :]
        inputs = self._binding.inputs
        if "encoder_hidden_states" in inputs:
            inputs["encoder_hidden_states"].copy_(
                torch.cat([half.encoder_hidden_states for half in halves])
            )
        pooled = [half.text_embeds for half in halves if half.text_embeds is not None]
        if "text_embeds" in inputs:
            inputs["text_embeds"].copy_(torch.cat(pooled))
        if time_ids is not None:
            inputs["time_ids"].copy_(self._own(time_ids))
        if "freeu" in inputs:
            inputs["freeu"].copy_(torch.tensor(freeu))
        if GUIDANCE_INPUT in inputs:
            embedding = inputs[GUIDANCE_INPUT]
            embedding.copy_(guidance_embedding(guidance_scale, embedding.shape[-1]))

    def write_extra_channels(self, channels: Tensor) -> None:
        """What an inpainting UNet sees besides the sample, ``[B, extra_channels, h, w]``."""
        for half in self._extra:
            half.copy_(channels)

    def write_image_prompt(self, tokens: Tensor | None, scale: float) -> None:
        """What an IP-Adapter's UNet attends to; see :func:`write_image_prompt`."""
        own = None if tokens is None else self._own(tokens)
        write_image_prompt(self._binding.inputs, own, scale)

    def take_deep_feature(self, full: BoundUNet) -> None:
        """Go on from what the last run of the ``full`` network left."""
        self._binding.inputs[DEEP_FEATURE].copy_(full._binding.outputs[DEEP_FEATURE])

    def predict(self, x: Tensor, scale: Number, timestep: Number) -> Sequence[Tensor]:
        """Run on ``scale · x``, and return the :attr:`predictions`."""
        factor = scale if isinstance(scale, Tensor) else self._factor.fill_(scale)
        for half in self._samples:
            torch.mul(x, factor, out=half)
        self._timestep.fill_(timestep)
        self._binding.run()
        if self._prediction is not self._noise_pred:
            self._prediction.copy_(self._noise_pred)
        return self.predictions

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.held`."""
        return self._binding.held()

    def _own(self, rows: Tensor) -> Tensor:
        """The rows of this network's halves."""
        return rows[-self._timestep.shape[0] :]
