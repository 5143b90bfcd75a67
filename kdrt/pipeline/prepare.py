"""From a job and its conditioning to a sampling run: noise, the initial images, and all that
the denoiser is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.upload import upload, uploaded
from kdrt.denoise.bound_unet import is_inpainting
from kdrt.denoise.inputs import (
    DenoiserInputs,
    RegionalPrompts,
    SamplingRun,
    UNetConditioning,
)
from kdrt.images.init_image import Encode
from kdrt.pipeline.controls import encode_controls
from kdrt.pipeline.image_to_image import begin_with_image
from kdrt.prompt import Conditioning
from kdrt.request.job import Job, latent_shape, noise_of
from kdrt.request.size_conditioning import TimeIds
from kdrt.sampling import RunNoise
from kdrt_engines import Engine

if TYPE_CHECKING:
    from kdrt.adapters.ip_adapter import ImagePrompts, ImageWeights


@torch.no_grad()
def prepare(
    job: Job,
    positive: Conditioning,
    negative: Conditioning | None,
    regions: Sequence[Conditioning] = (),
    *,
    manifest: Manifest,
    unet: Engine,
    encode: Encode,
    image_prompts: Callable[[], ImagePrompts],
    load: Callable[[str], Engine],
) -> SamplingRun:
    """Make the run of a job.

    Args:
        job: what to make.
        positive: conditioning of its B images.
        negative: that of the unconditional half; None where there is none.
        regions: that of the prompt of each region.
        manifest: of the bundle.
        unet: what will denoise.
        encode: the VAE's encoder, for initial images.
        image_prompts: gives what makes an IP-Adapter's tokens, called when there are any.
        load: gives the engines of controls by component.

    Raises:
        InvalidRequestError: the image prompts are not what the adapter takes.
    """
    shape = latent_shape(manifest, job.height, job.width)
    noise = noise_of(job, shape)
    latents = _first_latents(job, noise, unet.device)
    region = channels = None
    if job.init_image is not None:
        latents, region, channels = begin_with_image(
            job.init_image,
            latents,
            encode,
            plan=job.plan,
            scale=manifest.latents.scale,
            inpaints=is_inpainting(unet.spec),
        )
    images = len(latents)
    tokens, negative_tokens = _image_tokens(job, image_prompts, doubled=negative is not None)
    unconditional = None
    if negative is not None:
        negative_ids = _time_ids(job.negative_time_ids, images)
        unconditional = UNetConditioning(negative, negative_ids, negative_tokens)
    conditional = UNetConditioning(positive, _time_ids(job.time_ids, images), tokens)
    return SamplingRun(
        plan=job.plan,
        latents=latents,
        noise=noise,
        seed=job.seeds[0],
        inputs=DenoiserInputs(
            positive=conditional,
            negative=unconditional,
            guidance_scale=job.guidance_scale,
            guidance_rescale=job.guidance_rescale,
            guidance_method=job.guidance_method,
            perturbed_attention=job.perturbed_attention,
            regions=_regions(job, conditional, regions, unet.device),
            freeu=job.freeu,
            image_weights=_image_weights(job, images),
            known_region=region,
            extra_channels=channels,
            controls=encode_controls(job.controls, images, shape[1:], load),
            shortcuts=job.shortcuts,
        ),
    )


def _first_latents(job: Job, noise: RunNoise, device: torch.device) -> Tensor:
    """The noise at the σ of the beginning, or the state of another run to continue."""
    latents = uploaded(noise.latents(), device)
    if job.latents is not None:
        upload(latents, job.latents)
    return latents if job.continues else latents.mul_(job.plan.sigmas[0])


def _image_tokens(
    job: Job, image_prompts: Callable[[], ImagePrompts], *, doubled: bool
) -> tuple[Tensor | None, Tensor | None]:
    """IP-Adapters' tokens of the positive and of the negative half."""
    if job.image_prompt is None:
        return None, None
    tokens = image_prompts().encode(job.image_prompt, len(job.seeds), doubled=doubled)
    if not doubled:
        return tokens, None
    negative, positive = tokens.chunk(2)
    return positive, negative


def _image_weights(job: Job, images: int) -> ImageWeights | None:
    if job.image_prompt is None:
        return None
    from kdrt.adapters.ip_adapter import ImageWeights  # most images are made without

    return ImageWeights.of(job.image_prompt, images)


def _regions(
    job: Job,
    conditional: UNetConditioning,
    prompts: Sequence[Conditioning],
    device: torch.device,
) -> RegionalPrompts | None:
    """The conditioning of regions: that of the images themselves, with the regions' prompts."""
    if job.region_weights is None:
        return None
    weights = uploaded(job.region_weights, device)
    return RegionalPrompts(
        tuple(replace(conditional, prompt=prompt) for prompt in prompts),
        weights.expand(len(job.seeds), *weights.shape[1:]),
    )


def _time_ids(ids: TimeIds | None, images: int) -> Tensor | None:
    """Size conditioning, float32 ``[B, 6]`` (the refiner's ``[B, 5]``)."""
    return None if ids is None else torch.tensor([ids] * images, dtype=torch.float32)
