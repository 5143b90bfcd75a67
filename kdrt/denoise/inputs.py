"""What a run is made from: everything that decides the latents of B images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kdrt.denoise.freeu import FREEU_OFF, FreeU
from kdrt.denoise.guidance_methods import CFG, GuidanceMethod
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.shortcuts import NO_SHORTCUTS, Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import AnyPlan, NoiseSchedule, NoiseSource


@dataclass(frozen=True)
class UNetConditioning:
    """What the UNet is told of B images, in one half of the batch.

    Attributes:
        prompt: the text encoders' results.
        time_ids: SDXL's size conditioning, float32 ``[B, 6]`` (the refiner's ``[B, 5]``).
        image_tokens: an IP-Adapter's, ``[B, N, D]``; None is exactly off.
    """

    prompt: Conditioning
    time_ids: Tensor | None = None
    image_tokens: Tensor | None = None

    def one(self, image: int) -> UNetConditioning:
        """That of one image, still as a batch: B = 1."""
        return UNetConditioning(
            self.prompt.one(image), _row(self.time_ids, image), _row(self.image_tokens, image)
        )


@dataclass(frozen=True, kw_only=True)
class DenoiserInputs:
    """What the denoiser of a run is told; it stays the same from step to step.

    Attributes:
        positive: the conditional half.
        negative: the unconditional half; None runs without.
        guidance_scale: w in ``u + w·(c − u)``.
        guidance_rescale: φ of Lin et al. 2023, from 0 (off) to 1.
        guidance_method: how the halves are combined.
        freeu: (b1, b2, s1, s2).
        image_scale: how much ``image_tokens`` count.
        known_region: the part of the images that is not repainted; None repaints all.
        extra_channels: ``[B, 1 + C, h, w]``, what an inpainting UNet sees besides the sample: the
            mask, and the latents of the masked image. Unlike the sample, not scaled with the
            noise.
        shortcuts: which evaluations do less.
        noise_schedule: gives the timestep of a σ; None is the model's own training table.
    """

    positive: UNetConditioning
    negative: UNetConditioning | None = None
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_method: GuidanceMethod = CFG
    freeu: FreeU = FREEU_OFF
    image_scale: float = 1.0
    known_region: KnownRegion | None = None
    extra_channels: Tensor | None = None
    shortcuts: Shortcuts = NO_SHORTCUTS
    noise_schedule: NoiseSchedule | None = None

    @property
    def halves(self) -> tuple[UNetConditioning, ...]:
        """The halves of the batch in order, the unconditional one first."""
        return (self.positive,) if self.negative is None else (self.negative, self.positive)

    def one(self, image: int) -> DenoiserInputs:
        """Those of one image, still as a batch: B = 1."""
        return replace(
            self,
            positive=self.positive.one(image),
            negative=self.negative and self.negative.one(image),
            known_region=self.known_region and self.known_region.one(image),
            extra_channels=_row(self.extra_channels, image),
        )


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """B images to sample together.

    Attributes:
        plan: the sampler on its grid of σ.
        latents: the first state, float32 ``[B, C, h, w]`` at the noise level ``plan.sigmas[0]``,
            on the UNet's device.
        noise: of the steps. An adaptive plan with ``eta`` above 0 needs a `SeededNoise`.
        inputs: what the denoiser is told.
        seed: of what a foreign sampler draws from PyTorch's global generator on its own.
    """

    plan: AnyPlan
    latents: Tensor
    noise: NoiseSource
    inputs: DenoiserInputs
    seed: int = 0


def _row(tensor: Tensor | None, index: int) -> Tensor | None:
    return None if tensor is None else tensor[index : index + 1]
