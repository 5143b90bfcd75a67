"""Repainting a part of an image with any UNet: the denoiser is told what the rest shows.

At the samplers' scale a noisy image is ``x = z + σ·ξ``, with z the image's latents and ξ its noise.
Outside of the mask the denoiser's result is replaced by z. Any sampler then keeps that region at
``z + σ·ξ``, for the right σ at every step, with no hook in its loop. For a sampler's step is
``x' = a·x + Σ bⱼ·Dⱼ + s·noise`` and was made to solve ``dx/dσ = (x − D)/σ`` exactly for a constant
D: with all Dⱼ = z,

    x' = z + (σ'/σ)·(x − z)           which takes z + σ·ξ to z + σ'·ξ

and in a stochastic method the same with σ_down in place of σ', plus noise of its own that fills up
to σ'. At σ = 0 it is z. In Euler's method this is, number for number, what re-imposing the region
with fresh copies of the same noise after every step gives, as diffusers' inpainting does.

A UNet trained for inpainting (nine channels) sees mask and masked image as inputs instead: see
`kdrt.denoise.inputs.DenoiserInputs.extra_channels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KnownRegion:
    """The part of B images that is known.

    Attributes:
        latents: ``[B, C, h, w]``, the answer outside of the mask.
        mask: bool ``[B, 1, h, w]``, true where the denoiser decides.
    """

    latents: Tensor
    mask: Tensor

    def one(self, image: int) -> KnownRegion:
        """That of one image, still as a batch: B = 1."""
        return KnownRegion(self.latents[image : image + 1], self.mask[image : image + 1])

    def impose(self, denoised: Tensor) -> None:
        """Replace what is known in ``denoised``, in place."""
        torch.where(self.mask, denoised, self.latents, out=denoised)
