"""Where a run begins that begins with an image.

Image to image begins at the noise level that ``strength`` asks for: at the samplers' scale that is
``z + σ·ξ``, the image's latents and the seed's noise. With a mask, the rest is given back at every
step, by :mod:`kdrt.denoise.known_region` or by a UNet trained for inpainting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.denoise.known_region import KnownRegion
from kdrt.images.init_image import Encode, InitImage
from kdrt.sampling import AnyPlan


def begin_with_image(
    image: InitImage, noise: Tensor, encode: Encode, *, plan: AnyPlan, scale: int, inpaints: bool
) -> tuple[Tensor, KnownRegion | None, Tensor | None]:
    """The first state of a run that begins with an image, and what the denoiser is told of it.

    Args:
        image: the image, and its mask if only a part is repainted.
        noise: float32 ``[B, C, h, w]``, already times the first σ of the plan.
        encode: the VAE's encoder.
        plan: of the run.
        scale: pixels for one latent.
        inpaints: the UNet sees mask and masked image.

    Returns:
        The first state ``[B, C, h, w]``; the region that is known; and the extra channels of an
        inpainting UNet, ``[B, 1 + C, h, w]``. At most one of the last two is not None.
    """
    known = image.encoded(encode).to(noise)
    mask = image.latent_mask(scale)
    if mask is None:
        return known + noise, None, None
    mask = mask.to(noise.device)
    # A latent that is not made anew from the first step on begins as the image itself.
    is_anew = mask == 1
    begun = _under_mask(image, known, noise, plan.sigmas[0])
    if inpaints:
        channels = _inpainting_channels(image, mask, encode)
        # What is kept is told to such a UNet: made anew, it begins as noise alone everywhere.
        rest = begun if image.fill == "original" else known + noise
        return torch.where(is_anew, begun, rest), None, channels
    state = torch.where(is_anew, begun, known + noise)
    region = KnownRegion.soft(known, mask, plan.sigmas) if image.soft else KnownRegion(known, mask)
    return state, region, None


def _under_mask(image: InitImage, known: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The first state ``[B, C, h, w]`` of what is masked; see `InitImage`."""
    match image.fill:
        case "nothing":
            return noise
        case "noise":
            return noise + noise / sigma
        case "blurred":
            return known + noise
        case "original":
            return noise if image.anew else known + noise


def _inpainting_channels(image: InitImage, mask: Tensor, encode: Encode) -> Tensor:
    """The mask, and the latents of the image with the masked pixels grey: ``[B, 1 + C, h, w]``."""
    assert image.pixels is not None  # both are checked by read_init_image
    assert image.mask is not None
    masked = encode(image.pixels * (image.mask < 0.5))
    return torch.cat([mask.to(masked), masked], dim=1)
