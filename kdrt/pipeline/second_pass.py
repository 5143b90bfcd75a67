"""From the latents of a first pass to the job of the second one."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.images.upscaling import UPSCALINGS, LatentUpscaling
from kdrt.request.job import Job, SecondPass
from kdrt.vae.coder import check_latents
from kdrt.vae.vae import Vae
from kdrt_engines import Engine


@torch.no_grad()
def begin_second_pass(second: SecondPass, latents: Tensor, vae: Vae) -> Job:
    """The second pass of a job, which begins with what the first one has made.

    Args:
        second: what is to be made.
        latents: float32 ``[B, C, h, w]``, of the last step of the first pass.
        vae: of the pipeline; for what is enlarged as pixels.

    Raises:
        NonFiniteError: the first pass ended in latents that are not finite, or the VAE overflowed.
    """
    check_latents(latents)
    job, upscaling = second.job, UPSCALINGS[second.upscaler]
    if isinstance(upscaling, LatentUpscaling):
        enlarged = upscaling.enlarged(latents, *_latent_size(job))
    else:
        pixels = upscaling.enlarged(vae.decoder(latents), job.height, job.width)
        enlarged = vae.encode(pixels)
    return second.begun_with(enlarged)


def needs_pixels(second: SecondPass) -> bool:
    """Whether it is enlarged as pixels, which takes both halves of the VAE."""
    return not isinstance(UPSCALINGS[second.upscaler], LatentUpscaling)


def check_second_pass(second: SecondPass, unet: Engine, tokens: int) -> None:
    """Make sure before the first pass that the second one can run.

    Args:
        second: what is to be made.
        unet: the engine that makes it.
        tokens: the length of the conditioning.

    Raises:
        ShapeError: the engine was not made for this size; the message says what is missing.
    """
    height, width = _latent_size(second.job)
    if not unet.allows(h=height, w=width):
        least, _ = unet.limits().get("B", (1, 1))
        # It refuses in its own words, or has another engine for such sizes.
        unet.bind(B=least, L=tokens, h=height, w=width)


def _latent_size(job: Job) -> tuple[int, int]:
    """Rows and columns of the latents of a second pass, which was resolved with some."""
    assert job.init_image is not None
    assert job.init_image.latents is not None
    _, _, height, width = job.init_image.latents.shape
    return height, width
