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

A soft mask is a strength for every pixel: the higher, the earlier in a run the denoiser decides it
(differential diffusion, Levin & Fried 2023, arXiv:2306.00950). In step i of n the denoiser decides
where ``mask ≥ 1 − (i + 1)/n``, and nowhere where the mask is 0. So where it is 0.3, the last 30 %
of the steps make the image, from ``z + σ·ξ`` at the noise level where they begin. In Euler's method
this is, number for number, the authors' loop, which lays ``z + σ·ξ`` over what is not decided yet
before every step; except where the mask is 0, which there goes through the last step. An evaluation
belongs to the step in which its noise level lies, whatever the sampler.

A UNet trained for inpainting (nine channels) sees mask and masked image as inputs instead: see
`kdrt.denoise.inputs.DenoiserInputs.extra_channels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

HARD = 0.5
"""The threshold of a mask that is 0 or 1: at every noise level the same."""

_ROUNDING = 1e-6
"""Noise levels may be float32 numbers: by which part they may lie above their place in the grid."""


@dataclass(frozen=True)
class KnownRegion:
    """The part of B images that is known.

    Attributes:
        latents: ``[B, C, h, w]``, the answer where the denoiser does not decide.
        mask: ``[B, 1, h, w]``, float32 or bool: it decides where this is at least the threshold of
            the noise level.
        sigmas: the grid of the run, for thresholds that descend along it; None is `HARD` always.
    """

    latents: Tensor
    mask: Tensor
    sigmas: tuple[float, ...] | None = None

    @classmethod
    def soft(cls, latents: Tensor, mask: Tensor, sigmas: tuple[float, ...]) -> KnownRegion:
        """One whose mask, float32 ``[B, 1, h, w]`` in [0, 1], is a strength for every latent."""
        # Below every threshold, the last of which is 0.
        return cls(latents, torch.where(mask > 0, mask, -1.0), sigmas)

    def one(self, image: int) -> KnownRegion:
        """That of one image, still as a batch: B = 1."""
        one = slice(image, image + 1)
        return replace(self, latents=self.latents[one], mask=self.mask[one])

    def threshold(self, sigma: float) -> float:
        """What the mask must reach at this noise level for the denoiser to decide."""
        if self.sigmas is None:
            return HARD
        steps = len(self.sigmas) - 1
        begun = sum(level >= sigma * (1 - _ROUNDING) for level in self.sigmas[1:-1])
        return 1 - (begun + 1) / steps

    def impose(self, denoised: Tensor, threshold: Tensor, decides: Tensor) -> None:
        """Replace what is known in ``denoised``, in place.

        Args:
            denoised: ``[B, C, h, w]``.
            threshold: a number, or one for each image: it broadcasts against ``[B, 1, h, w]``.
            decides: bool ``[B, 1, h, w]``, to write to.
        """
        torch.ge(self.mask, threshold, out=decides)
        torch.where(decides, denoised, self.latents, out=denoised)


def threshold_of(region: KnownRegion | None, sigma: float) -> float:
    """Its :meth:`KnownRegion.threshold`; where nothing is known any will do."""
    return HARD if region is None else region.threshold(sigma)
