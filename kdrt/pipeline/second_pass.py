"""From the latents of a first pass to the job of the second one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from kdrt.bundle.components import UPSCALER_COMPONENT
from kdrt.images.upscaler import Upscaler
from kdrt.images.upscaling import UPSCALINGS, LatentUpscaling, PixelUpscaling
from kdrt.request.job import Job, SecondPass
from kdrt.vae.coder import check_latents
from kdrt.vae.vae import Vae
from kdrt_engines import Engine

_LANCZOS = PixelUpscaling("Lanczos", Image.Resampling.LANCZOS)


@torch.no_grad()
def begin_second_pass(
    second: SecondPass, latents: Tensor, vae: Vae, load: Callable[[str], Engine]
) -> Job:
    """The second pass of a job, which begins with what the first one has made.

    Args:
        second: what is to be made.
        latents: float32 ``[B, C, h, w]``, of the last step of the first pass.
        vae: of the pipeline; for what is enlarged as pixels.
        load: gives the engine of a component; for what is enlarged by a network.

    Raises:
        NonFiniteError: the first pass ended in latents that are not finite, or the VAE or the
            network overflowed.
    """
    check_latents(latents)
    job = second.job
    if second.model is not None:
        pixels = vae.decoder(latents)
        upscaler = Upscaler(load(UPSCALER_COMPONENT + second.upscaler), second.model)
        enlarged = vae.encode(_by_network(upscaler, pixels, job.height, job.width))
        return second.begun_with(enlarged)
    upscaling = UPSCALINGS[second.upscaler]
    if isinstance(upscaling, LatentUpscaling):
        enlarged = upscaling.enlarged(latents, *_latent_size(job))
    else:
        pixels = upscaling.enlarged(vae.decoder(latents), job.height, job.width)
        enlarged = vae.encode(pixels)
    return second.begun_with(enlarged)


def _by_network(upscaler: Upscaler, pixels: Tensor, height: int, width: int) -> Tensor:
    """float32 ``[B, 3, h, w]`` in about [-1, 1] as ``[B, 3, height, width]`` in [-1, 1].

    A network enlarges by its own factor; from there it is Lanczos.
    """
    # One by one, as at the size that the network makes a batch may not fit into memory.
    each = [
        _LANCZOS.enlarged(upscaler(image.add(1).div(2).clamp_(0, 1)).mul(2).sub(1), height, width)
        for image in pixels.unsqueeze(1)
    ]
    return torch.cat(each).to(pixels.device)


def needs_pixels(second: SecondPass) -> bool:
    """Whether it is enlarged as pixels, which takes both halves of the VAE."""
    return second.model is not None or not isinstance(UPSCALINGS[second.upscaler], LatentUpscaling)


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
