"""A UNet bound to one batch: where its rows and parts lie, and how it is fed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdrt.bundle.components import DEEP_FEATURE, IMAGE_TOKENS_INPUT, PAG_INPUT, is_residual
from kdrt.common.upload import upload
from kdrt.denoise.controls import BoundControls, ControlEngines
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.parts import Parts, Predictions
from kdrt.denoise.scaling import Scalar, host_scalar
from kdrt_engines import Engine, EngineSpec

GUIDANCE_INPUT = "timestep_cond"
"""The input of distilled models, which take the guidance scale as an embedding."""


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


def write_conditioning(inputs: Mapping[str, Tensor], told: DenoiserInputs, parts: Parts) -> None:
    """Write what the UNet is told of B images and does not change from step to step, as far as it
    takes it.

    Args:
        inputs: those of the UNet that have a row for each image of each part; others are left
            alone.
        told: holds what is the same for all parts.
        parts: of ``told``, those that the rows are of.
    """
    by_part = told.conditioning(parts)
    _write(inputs, "encoder_hidden_states", [part.prompt.encoder_hidden_states for part in by_part])
    _write(inputs, "text_embeds", [part.prompt.text_embeds for part in by_part])
    _write(inputs, "time_ids", [part.time_ids for part in by_part])
    if PAG_INPUT in inputs:
        *_, last = inputs[PAG_INPUT].zero_().chunk(parts.rows)
        last.fill_(parts.perturbed)
    if IMAGE_TOKENS_INPUT in inputs:
        from kdrt.adapters.ip_adapter import write_image_prompt  # few UNets take images

        tokens = _joined([part.image_tokens for part in by_part])
        write_image_prompt(inputs, tokens, told.image_weights)
    if "freeu" in inputs:
        upload(inputs["freeu"], torch.tensor(told.freeu))
    if GUIDANCE_INPUT in inputs:
        embedding = inputs[GUIDANCE_INPUT]
        upload(embedding, guidance_embedding(told.guidance_scale, embedding.shape[-1]))


def _write(inputs: Mapping[str, Tensor], name: str, parts: Sequence[Tensor | None]) -> None:
    if name not in inputs:
        return
    rows = _joined(parts)
    if rows is None:
        inputs[name].zero_()
    else:
        upload(inputs[name], rows)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of the whole batch; None where a part has none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) == len(parts) else None


class UNetRows:
    """A UNet at one size, row by row.

    Args:
        unet: the engine; the whole UNet, or the shallow one.
        rows: R, the size of the batch.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        controls: what is added to its layers; None is nothing.

    Attributes:
        inputs: of the UNet, at the addresses that it reads.
        sample: ``[R, C, h, w]``, the part of the input that is the scaled latents.
        extra: ``[R, C', h, w]``, the rest of it, which inpainting models have.
        timestep: ``[R]``.
        place: float32 ``[R]``, of each row in its run; where there are controls.
        controls: of these rows.
        prediction: float32 ``[R, C, h, w]``: what the last run left.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self,
        unet: Engine,
        *,
        rows: int,
        height: int,
        width: int,
        tokens: int,
        controls: ControlEngines | None = None,
    ) -> None:
        dims = {"B": rows, "L": tokens, "h": height, "w": width}
        self._binding = unet.bind(**dims)
        self.inputs = self._binding.inputs
        self._noise_pred = self._binding.outputs["noise_pred"]
        channels = self._noise_pred.shape[1]
        self.sample = self.inputs["sample"][:, :channels]
        self.extra = self.inputs["sample"][:, channels:]
        self.timestep = self.inputs["timestep"]
        self.place = torch.zeros(rows, device=unet.device)
        for name, tensor in self.inputs.items():
            if is_residual(name):
                tensor.zero_()
        self.controls: BoundControls | None = None
        if controls is not None:
            self.controls = BoundControls(controls, dims, self.inputs)
        self.prediction = self._noise_pred
        if self._noise_pred.dtype != torch.float32:
            # Guidance amplifies differences: they must not be taken in half precision.
            self.prediction = torch.empty_like(self._noise_pred, dtype=torch.float32)

    def run(self, *, at: float | None = None, controlled: bool = True) -> None:
        """Compute the prediction from the inputs.

        Args:
            at: the place of all rows, where the host knows it.
            controlled: whether a control may work at that of some row.
        """
        if self.controls is not None:
            self.controls.clear()
            if controlled:
                self.controls.run(self.sample, self.timestep, self.place, at=at)
        self._binding.run()
        if self.prediction is not self._noise_pred:
            self.prediction.copy_(self._noise_pred)

    def take_deep_feature(self, full: UNetRows) -> None:
        """Copy the deep feature that the last run of the ``full`` network computed."""
        self.inputs[DEEP_FEATURE].copy_(full._binding.outputs[DEEP_FEATURE])

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        held = self._binding.workspace()
        return held if self.controls is None else (*held, *self.controls.held())


class BatchParts:
    """The rows of a UNet as parts of B images, one part after the other.

    Args:
        rows: ``parts.rows · B`` of them.
        parts: in the order that they have there.

    Attributes:
        extra: `UNetRows.extra` of each, ``[B, C', h, w]``.
        predictions: of each: what the last run left.
    """

    def __init__(self, rows: UNetRows, parts: Parts) -> None:
        # Views are made here, not in each step.
        self.extra = rows.extra.chunk(parts.rows)
        self.predictions = Predictions.of_batch(rows.prediction, parts)
        self._samples = rows.sample.chunk(parts.rows)
        self._timesteps = rows.timestep.view(parts.rows, -1)
        self._places = rows.place.view(parts.rows, -1)
        self._rows = rows
        self._factor = host_scalar()

    def predict(
        self,
        x: Tensor,
        c_in: Scalar,
        timestep: Scalar,
        place: Scalar = 0.0,
        *,
        controlled: bool = True,
    ) -> Predictions:
        """Run on ``c_in · x``, and return the :attr:`predictions`; see `UNetRows.run`."""
        factor = c_in if isinstance(c_in, Tensor) else self._factor.fill_(c_in)
        for part in self._samples:
            torch.mul(x, factor, out=part)
        if isinstance(timestep, Tensor):
            self._timesteps.copy_(timestep)
        else:
            self._timesteps.fill_(timestep)
        if self._rows.controls is None:
            self._rows.run()
        elif isinstance(place, Tensor):
            self._places.copy_(place.flatten())
            self._rows.run(controlled=controlled)
        else:
            self._places.fill_(place)
            self._rows.run(at=place)
        return self.predictions


class BoundUNet:
    """A UNet for B images, each with a row in every part.

    Args:
        unet: the engine.
        images: B, the number of images.
        parts: of the batch.
        height: latent rows.
        width: latent columns.
        tokens: L, the length of the conditioning.
        controls: what is added to its layers; None is nothing.

    Attributes:
        predictions: see `BatchParts`.
        predict: see `BatchParts`.

    Raises:
        ShapeError: the engine does not allow these sizes.
    """

    def __init__(
        self,
        unet: Engine,
        *,
        images: int,
        parts: Parts,
        height: int,
        width: int,
        tokens: int,
        controls: ControlEngines | None = None,
    ) -> None:
        self._parts = parts
        self._rows = UNetRows(
            unet,
            rows=parts.rows * images,
            height=height,
            width=width,
            tokens=tokens,
            controls=controls,
        )
        self._batch = BatchParts(self._rows, parts)
        self.predictions = self._batch.predictions
        self.predict = self._batch.predict

    @property
    def extra_channels(self) -> int:
        """Channels of the sample beyond the latents'."""
        return self._rows.extra.shape[1]

    def write(self, told: DenoiserInputs) -> None:
        """Write all that does not change from step to step, as far as this network takes it."""
        write_conditioning(self._rows.inputs, told, self._parts)
        if told.extra_channels is not None:
            for part in self._batch.extra:
                part.copy_(told.extra_channels)
        if self._rows.controls is not None:
            self._rows.controls.write(told.controls, self._parts)

    def take_deep_feature(self, full: BoundUNet) -> None:
        """Copy the deep feature that the last run of the ``full`` network computed."""
        self._rows.take_deep_feature(full._rows)

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return self._rows.held()
