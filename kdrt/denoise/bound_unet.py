"""A UNet bound to one batch: where its halves lie, and how it is fed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import TOKENS_INPUT, write_image_prompt
from kdrt.bundle.components import DEEP_FEATURE
from kdrt.denoise.inputs import DenoiserInputs
from kdrt_engines import Engine, EngineSpec

Scalar = float | Tensor
"""A Python number, or a tensor without dimensions on the device."""

GUIDANCE_INPUT = "timestep_cond"
"""The input of distilled models, which take the guidance scale as an embedding."""


def host_scalar() -> Tensor:
    """A float32 tensor without dimensions, on the host, to fill with a factor of ``torch.mul``:
    that would make a tensor of a Python number at every call."""
    return torch.zeros((), dtype=torch.float32)


def is_inpainting(unet: EngineSpec) -> bool:
    """Whether a UNet sees mask and masked image: its sample has more channels than its
    prediction."""
    return unet.input("sample").shape[1] != unet.outputs[0].shape[1]


def guidance_embedding(guidance_scale: float, size: int) -> Tensor:
    """The guidance scale as sines and cosines, float32 ``[size]`` (Luo et al. 2023, "Latent
    Consistency Models", on w = guidance_scale − 1)."""
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32) / max(half - 1, 1)
    angles = 1000.0 * (guidance_scale - 1) * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(size - 2 * half)])


class BoundUNet:
    """A UNet at one size: one half, the conditional, or two with the unconditional in front.

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
        self._factor = host_scalar()

    def write(self, told: DenoiserInputs) -> None:
        """Write all that does not change from step to step, as far as this network takes it."""
        inputs = self._binding.inputs
        halves = told.halves[-self._halves :]
        self._write("encoder_hidden_states", [half.prompt.encoder_hidden_states for half in halves])
        self._write("text_embeds", [half.prompt.text_embeds for half in halves])
        self._write("time_ids", [half.time_ids for half in halves])
        if TOKENS_INPUT in inputs:
            tokens = _joined([half.image_tokens for half in halves])
            write_image_prompt(inputs, tokens, told.image_scale)
        if "freeu" in inputs:
            inputs["freeu"].copy_(torch.tensor(told.freeu))
        if GUIDANCE_INPUT in inputs:
            embedding = inputs[GUIDANCE_INPUT]
            embedding.copy_(guidance_embedding(told.guidance_scale, embedding.shape[-1]))
        if told.extra_channels is not None:
            for half in self._extra:
                half.copy_(told.extra_channels)

    def _write(self, name: str, halves: Sequence[Tensor | None]) -> None:
        if name not in self._binding.inputs:
            return
        rows = _joined(halves)
        if rows is None:
            self._binding.inputs[name].zero_()
        else:
            self._binding.inputs[name].copy_(rows)

    def take_deep_feature(self, full: BoundUNet) -> None:
        """Copy the deep feature that the last run of the ``full`` network computed."""
        self._binding.inputs[DEEP_FEATURE].copy_(full._binding.outputs[DEEP_FEATURE])

    def predict(self, x: Tensor, c_in: Scalar, timestep: Scalar) -> Sequence[Tensor]:
        """Run on ``c_in · x``, and return the :attr:`predictions`."""
        factor = c_in if isinstance(c_in, Tensor) else self._factor.fill_(c_in)
        for half in self._samples:
            torch.mul(x, factor, out=half)
        self._timestep.fill_(timestep)
        self._binding.run()
        if self._prediction is not self._noise_pred:
            self._prediction.copy_(self._noise_pred)
        return self.predictions

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return self._binding.workspace()


def _joined(halves: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of the whole batch; None where a half has none."""
    present = [half for half in halves if half is not None]
    return torch.cat(present) if len(present) == len(halves) else None
