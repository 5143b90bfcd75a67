"""A request resolved for one model: what :func:`kdrt.request.resolve.resolve` makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdrt.adapters.unet_features import Features
from kdrt.bundle import Manifest, UpscalerFacts
from kdrt.common.literals import OutputType
from kdrt.denoise.freeu import FreeU
from kdrt.denoise.guidance_methods import GuidanceMethod
from kdrt.denoise.parts import Parts
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.images.init_image import InitImage
from kdrt.images.safety import ImageFilter
from kdrt.prompt import Conditioning, Weighting
from kdrt.request.controls import JobControl
from kdrt.request.size_conditioning import TimeIds
from kdrt.request.snapshot import Columns, JobSnapshot
from kdrt.sampling import AnyPlan, ForeignPlan, Plan, RunNoise, find_noise

if TYPE_CHECKING:
    from kdrt.adapters.image_prompt import ImageRequest


@dataclass(frozen=True, kw_only=True)
class PromptJob:
    """The part of a job that text encoders work on, for B images.

    Attributes:
        prompts: for every text encoder, in order, B prompts; empty ones if ``positive`` is given.
        negatives: the same for the negative prompts; None stands for zeros, SDXL's "none", unless
            ``negative`` is given.
        positive, negative: what the caller brought in place of prompts, for B images.
        weighting: how prompts are read.
        clip_skip: 0 if none was asked for.
        region_prompts: of parts of all images, beside the image's own.
    """

    prompts: Columns
    negatives: Columns | None
    positive: Conditioning | None
    negative: Conditioning | None
    weighting: Weighting
    clip_skip: int
    region_prompts: tuple[str, ...] = ()

    def repeated(self, times: int) -> PromptJob:
        """The same with every prompt ``times`` times in a row: p0, p0, p1, p1."""
        return PromptJob(
            prompts=_repeated(self.prompts, times),
            negatives=self.negatives and _repeated(self.negatives, times),
            positive=self.positive and self.positive.repeated(times),
            negative=self.negative and self.negative.repeated(times),
            weighting=self.weighting,
            clip_skip=self.clip_skip,
            region_prompts=self.region_prompts,
        )


@dataclass(frozen=True, kw_only=True)
class Job(PromptJob):
    """A checked request with nothing left open, for B images.

    Attributes:
        height, width: in pixels.
        seeds: B of them.
        noise_seeds: the same for the noise on the way; None where the mode goes by the seeds.
        noise: whose noise a seed stands for, a key of `kdrt.sampling.NOISES`.
        noise_options: the mode's own.
        latents: ``[B, C, h, w]`` in place of the seeds' noise.
        continues: ``latents`` are the state of another run, to go on with as they are.
        plan: the sampler on its grid of σ; a `ForeignPlan` for one that is not ours.
        init_image: the initial images; None begins with noise.
        guidance_method: how the results with and without the prompt are combined.
        perturbed_attention: guidance away from perturbed results; None without.
        region_weights: float32 ``[n, 1 + N, 1, h, w]``, of the image's own prompt and those of N
            regions, for all images (n = 1) or for each; None without.
        shortcuts: which evaluations do less.
        controls: the control images that add anything.
        image_prompt: what IP-Adapters are given; None is nothing.
        time_ids, negative_time_ids: SDXL's six numbers of size conditioning, the refiner's five;
            None without.
        output_type: the form of the result.
        image_filter: called with every image.
        unet_features: what the UNet must be able to do.
        snapshot: what the text of the images is made from.
        second: the pass at a larger size that begins with what this one ends with; None is none.
    """

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
    guidance_method: GuidanceMethod
    perturbed_attention: PerturbedAttention | None
    region_weights: Tensor | None
    shortcuts: Shortcuts
    freeu: FreeU
    controls: tuple[JobControl, ...]
    image_prompt: ImageRequest | None
    time_ids: TimeIds | None
    negative_time_ids: TimeIds | None
    output_type: OutputType
    image_filter: ImageFilter | None
    unet_features: Features
    snapshot: JobSnapshot
    second: SecondPass | None = None

    @property
    def steps(self) -> int:
        """Of each image, over both passes."""
        return self.plan.steps + (0 if self.second is None else self.second.job.plan.steps)


@dataclass(frozen=True, kw_only=True)
class SecondPass:
    """What is made of the latents of a first pass.

    Attributes:
        job: the same images from an image, at the larger size. Its image, latents of zero, stands
            for what the first pass has yet to make.
        upscaler: how that is enlarged, a name in `kdrt.images.upscaling.UPSCALINGS` or of a model.
        model: what the bundle says of that, where it is a network.
    """

    job: Job
    upscaler: str
    model: UpscalerFacts | None = None

    def begun_with(self, latents: Tensor) -> Job:
        """Its job with the enlarged ``latents [B, C, h, w]`` to begin with."""
        assert self.job.init_image is not None  # it was resolved with one
        return replace(self.job, init_image=replace(self.job.init_image, latents=latents))


def _repeated(columns: Columns, times: int) -> Columns:
    return tuple(tuple(text for text in column for _ in range(times)) for column in columns)


def with_users_functions(job: Job, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Job:
    """The same job, each function of the user's in it replaced by what ``wrap`` makes of it."""
    if job.image_filter is not None:
        job = replace(job, image_filter=wrap(job.image_filter))
    if isinstance(job.plan, ForeignPlan):
        job = replace(job, plan=replace(job.plan, function=wrap(job.plan.function)))
    if job.second is not None:
        wrapped = with_users_functions(job.second.job, wrap)
        job = replace(job, second=replace(job.second, job=wrapped))
    return job


def noise_of(job: Job, shape: tuple[int, int, int]) -> RunNoise:
    """All noise of a job, for latents of ``shape`` ``(C, h, w)``, on the host."""
    info = find_noise(job.noise)
    return info.make(job.seeds, shape, job.plan, job.noise_seeds, **job.noise_options)


def unet_rows(job: Job, parts: Parts) -> int | None:
    """How many rows of the whole UNet an image takes, all evaluations of all passes together; None
    where the sampler decides on its evaluations as it goes.

    Args:
        job: what is made.
        parts: of an evaluation with guidance.
    """
    if not isinstance(job.plan, Plan):
        return None
    kinds = job.shortcuts.kinds(stage.sigma for stage in job.plan.stages)
    guided, others = parts.rows, parts.without_guidance.rows
    rows = sum(guided if kind.guided else others for kind in kinds if kind.full)
    second = 0 if job.second is None else unet_rows(job.second.job, parts)
    return None if second is None else rows + second


def latent_shape(manifest: Manifest, height: int, width: int) -> tuple[int, int, int]:
    """``(C, h, w)`` of the latents of one image of ``height`` by ``width`` pixels."""
    facts = manifest.latents
    return facts.channels, height // facts.scale, width // facts.scale
