"""What a user asks for, and what that means for one model.

A :class:`Request` holds the arguments of a generation as they were given; a :class:`Job` is what
:func:`kdrt.request.resolve.resolve` makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from kdrt.adapters.ip_adapter import ImagePrompt
from kdrt.bundle import Manifest
from kdrt.denoise.freeu import FreeU
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.images.init_image import InitImage
from kdrt.images.output import OutputType
from kdrt.images.safety import ImageFilter
from kdrt.prompt import COMMA_BACKTRACK, Conditioning, Weighting, WeightingMode
from kdrt.request.size_conditioning import SizeConditioning, TimeIds
from kdrt.sampling import AnyPlan, RunNoise, find_noise


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a generation; see :meth:`kdrt.pipeline.pipeline.Pipeline.__call__`."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_2: str | Sequence[str] | None = None
    negative_prompt_2: str | Sequence[str] | None = None
    prompt_embeds: Tensor | Conditioning | None = None
    negative_prompt_embeds: Tensor | Conditioning | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    prompt_weighting: WeightingMode = "none"
    comma_backtrack: int = COMMA_BACKTRACK
    height: int | None = None
    width: int | None = None
    steps: int = 20
    sampler: str | Callable[..., Any] = "dpmpp_2m"
    schedule: str = "karras"
    sampler_options: Mapping[str, Any] | None = None
    schedule_options: Mapping[str, float | int | str | bool] | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    image: Any = None
    mask_image: Any = None
    keep_unmasked: bool = True
    strength: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    images_per_prompt: int = 1
    seed: int | Sequence[int] | None = None
    generator: Generator | None = None
    noise: str = "per_image"
    noise_seed: int | Sequence[int] | None = None
    noise_options: Mapping[str, int | str] | None = None
    latents: Tensor | None = None
    clip_skip: int | None = None
    freeu: FreeU | str | None = None
    ip_adapter_image: ImagePrompt | None = None
    ip_adapter_image_embeds: Tensor | None = None
    ip_adapter_scale: float = 1.0
    sizes: SizeConditioning = field(default_factory=SizeConditioning)
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    output_type: OutputType = "pil"
    image_filter: ImageFilter | None = None

    @property
    def has_image_prompt(self) -> bool:
        return self.ip_adapter_image is not None or self.ip_adapter_image_embeds is not None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked request with nothing left open, for B images.

    Attributes:
        request: what it was made from.
        prompts: for every text encoder, in order, B prompts; empty ones if ``positive`` is given.
        negatives: the same for the negative prompts; None stands for zeros, SDXL's "none", unless
            ``negative`` is given.
        positive, negative: what the caller brought in place of prompts, for B images.
        weighting: how prompts are read.
        height, width: in pixels.
        seeds: B of them.
        noise_seeds: likewise, for the noise on the way; None where the mode goes by the seeds.
        noise: whose noise a seed stands for, a key of `kdrt.sampling.NOISES`.
        noise_options: the mode's own.
        latents: ``[B, C, h, w]`` in place of the seeds' noise.
        continues: ``latents`` are the state of another run, to go on with as they are.
        plan: the sampler on its grid of σ; a `ForeignPlan` for one that is not ours.
        init_image: the images to begin with; None begins with noise.
        shortcuts: which evaluations do less.
        clip_skip: 0 if none was asked for.
        time_ids, negative_time_ids: SDXL's six numbers of size conditioning, the refiner's five;
            None without.
    """

    request: Request
    prompts: tuple[tuple[str, ...], ...]
    negatives: tuple[tuple[str, ...], ...] | None
    positive: Conditioning | None
    negative: Conditioning | None
    weighting: Weighting
    height: int
    width: int
    seeds: tuple[int, ...]
    noise_seeds: tuple[int, ...] | None
    noise: str
    noise_options: Mapping[str, int | str]
    latents: Tensor | None
    continues: bool
    plan: AnyPlan
    init_image: InitImage | None
    guidance_scale: float
    guidance_rescale: float
    shortcuts: Shortcuts
    clip_skip: int
    freeu: FreeU
    ip_adapter_image: ImagePrompt | None
    ip_adapter_image_embeds: Tensor | None
    ip_adapter_scale: float
    time_ids: TimeIds | None
    negative_time_ids: TimeIds | None


def noise_of(job: Job, shape: tuple[int, int, int]) -> RunNoise:
    """All noise of a job, for latents of ``shape`` ``(C, h, w)``, on the host."""
    info = find_noise(job.noise)
    return info.make(job.seeds, shape, job.plan, job.noise_seeds, **job.noise_options)


def latent_shape(manifest: Manifest, height: int, width: int) -> tuple[int, int, int]:
    """``(C, h, w)`` of the latents of one image of ``height`` by ``width`` pixels."""
    facts = manifest.latents
    return facts.channels, height // facts.scale, width // facts.scale
