"""What a run is made from: everything that decides the latents of B images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from kdrt.denoise.controls import Control, ControlComponent
from kdrt.denoise.freeu import FREEU_OFF, FreeU
from kdrt.denoise.guidance_methods import CFG, GuidanceMethod
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Parts
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.scaling import Numbers
from kdrt.denoise.shortcuts import NO_SHORTCUTS, Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import AnyPlan, NoiseSchedule, NoiseSource

if TYPE_CHECKING:
    from kdrt.adapters.ip_adapter import ImageWeights


@dataclass(frozen=True)
class UNetConditioning:
    """The conditioning of B images, in one part of the batch.

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


@dataclass(frozen=True)
class RegionalPrompts:
    """The regions of B images; see `kdrt.denoise.regional`.

    Attributes:
        conditioning: what the UNet is told of the prompt of each region, N in all.
        weights: float32 ``[B, 1 + N, 1, h, w]``, first those of the images' own prompts; they sum
            to 1 at every place.
    """

    conditioning: tuple[UNetConditioning, ...]
    weights: Tensor

    def one(self, image: int) -> RegionalPrompts:
        """That of one image, still as a batch: B = 1."""
        return RegionalPrompts(
            tuple(each.one(image) for each in self.conditioning), self.weights[image : image + 1]
        )


class GuidanceSettings(NamedTuple):
    """What guidance is made with; attributes as of `DenoiserInputs`."""

    scale: float = 1.0
    rescale: float = 0.0
    method: GuidanceMethod = CFG
    perturbed_attention: PerturbedAttention | None = None

    def numbers(self, scalars: tuple[float, float, float, float]) -> Numbers:
        """All that an evaluation needs to know.

        Args:
            scalars: of its noise level; see `kdrt.denoise.scaling.Scaling.scalars`.
        """
        _, timestep, *_ = scalars
        pag = self.perturbed_attention
        pag_scale = 0.0 if pag is None else pag.at(timestep)
        return Numbers(*scalars, self.scale, self.rescale, *self.method.numbers, pag_scale)

    @property
    def without_unconditional(self) -> GuidanceSettings:
        """Those of an evaluation that has no unconditional part, beside others that have one:
        whatever stands in its place, the result is the conditional one."""
        return self._replace(scale=1.0, rescale=0.0, method=CFG)


@dataclass(frozen=True, kw_only=True)
class DenoiserInputs:
    """What the denoiser of a run is told; it stays the same from step to step.

    Attributes:
        positive: the conditional part.
        negative: the unconditional part; None runs without.
        guidance_scale: w in ``u + w·(c − u)``.
        guidance_rescale: φ of Lin et al. 2023, from 0 (off) to 1.
        guidance_method: how the two are combined.
        perturbed_attention: adds a perturbed part; None runs without.
        regions: parts for other prompts, each for a region of the images; None runs without.
        freeu: (b1, b2, s1, s2).
        image_weights: how much ``image_tokens`` count.
        known_region: the part of the images that is not repainted; None repaints all.
        extra_channels: ``[B, 1 + C, h, w]``, what an inpainting UNet sees besides the sample: the
            mask, and the latents of the masked image. Unlike the sample, not scaled with the
            noise.
        controls: what is added to the layers of the UNet.
        shortcuts: which evaluations do less.
        noise_schedule: gives the timestep of a σ; None is the model's own training table.
    """

    positive: UNetConditioning
    negative: UNetConditioning | None = None
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_method: GuidanceMethod = CFG
    perturbed_attention: PerturbedAttention | None = None
    regions: RegionalPrompts | None = None
    freeu: FreeU = FREEU_OFF
    image_weights: ImageWeights | None = None
    known_region: KnownRegion | None = None
    extra_channels: Tensor | None = None
    controls: tuple[Control, ...] = ()
    shortcuts: Shortcuts = NO_SHORTCUTS
    noise_schedule: NoiseSchedule | None = None

    @property
    def parts(self) -> Parts:
        """The parts of the batch."""
        return Parts(
            unconditional=self.negative is not None,
            regions=0 if self.regions is None else len(self.regions.conditioning),
            perturbed=self.perturbed_attention is not None,
        )

    def conditioning(self, parts: Parts) -> tuple[UNetConditioning, ...]:
        """What the UNet is told in each of these parts, in order; they are parts of this run."""
        told = [] if self.negative is None or not parts.unconditional else [self.negative]
        told.append(self.positive)
        if self.regions is not None:
            told.extend(self.regions.conditioning)
        if parts.perturbed:
            told.append(self.positive)
        return tuple(told)

    @property
    def guidance(self) -> GuidanceSettings:
        """The numbers of guidance."""
        return GuidanceSettings(
            self.guidance_scale,
            self.guidance_rescale,
            self.guidance_method,
            self.perturbed_attention,
        )

    @property
    def control_components(self) -> tuple[ControlComponent, ...]:
        """What the controls are computed with, in order."""
        return tuple(control.component for control in self.controls)

    def one(self, image: int) -> DenoiserInputs:
        """Those of one image, still as a batch: B = 1."""
        return replace(
            self,
            positive=self.positive.one(image),
            negative=self.negative and self.negative.one(image),
            regions=self.regions and self.regions.one(image),
            known_region=self.known_region and self.known_region.one(image),
            extra_channels=_row(self.extra_channels, image),
            image_weights=self.image_weights and self.image_weights.one(image),
            controls=tuple(control.one(image) for control in self.controls),
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
