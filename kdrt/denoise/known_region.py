"""Beginning with an image instead of noise: image to image, and inpainting.

At the samplers' scale a noisy image is ``x = z + σ·ξ``, so image to image begins at the σ that
``strength`` asks for with the image's latents z and the seed's noise ξ.

To repaint only a part, the denoiser is told the rest: outside of the mask its answer is replaced
by z (:class:`KnownRegion`). Any sampler then keeps that region at ``z + σ·ξ``, for the right σ at
every step, with no hook in its loop. For a sampler's step is ``x' = a·x + Σ bⱼ·Dⱼ + s·noise`` and
was made to solve ``dx/dσ = (x − D)/σ`` exactly for a constant D: with all Dⱼ = z,

    x' = z + (σ'/σ)·(x − z)           which takes z + σ·ξ to z + σ'·ξ

and in a stochastic method the same with σ_down in place of σ', plus noise of its own that fills up
to σ'. At σ = 0 it is z. In Euler's method this is, number for number, what re-imposing the region
with fresh copies of the same noise after every step gives, as diffusers' inpainting does.

A UNet trained for inpainting (nine channels) sees mask and masked image as inputs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.shortcuts import Evaluation
from kdrt.sampling.executor import Denoise
from kdrt_engines import EngineSpec

if TYPE_CHECKING:
    pass


Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """The images that a job begins with.

    Attributes:
        pixels: float32 ``[B, 3, H, W]`` in [-1, 1]; None where latents were given.
        latents: ``[B, C, h, w]``, as a run with ``output_type="latent"`` gives them.
        mask: float32 ``[B, 1, H, W]``: 1 is repainted, 0 is kept; None repaints all.
        anew: nothing of what is masked is kept: it begins as noise alone (a strength of 1).
        keep_unmasked: paste the image's own pixels over what is not masked.
        height, width: in pixels.
    """

    pixels: Tensor | None
    latents: Tensor | None
    mask: Tensor | None
    anew: bool
    keep_unmasked: bool
    height: int
    width: int

    def encoded(self, encode: Encode) -> Tensor:
        """The latents ``[B, C, h, w]``."""
        if self.pixels is None:
            assert self.latents is not None  # one of the two is always there
            return self.latents
        return encode(self.pixels)

    def latent_mask(self, scale: int) -> Tensor | None:
        """The mask by latents, bool ``[B, 1, h, w]``: those with any pixel to repaint, so that
        nothing thinner than a latent is lost."""
        return None if self.mask is None else F.max_pool2d(self.mask, scale) >= 0.5

    def paste(self, pixels: Tensor) -> Tensor:
        """The image's own pixels over what is not masked; a soft mask blends. Latents must be
        decoded, which changes every pixel a little: this gives back the original ones."""
        if self.mask is None or self.pixels is None or not self.keep_unmasked:
            return pixels
        mask, kept = self.mask.to(pixels.device), self.pixels.to(pixels.device)
        return torch.where(mask == 0, kept, torch.lerp(kept, pixels, mask))


class KnownRegion:
    """A denoiser that knows a part of the answer; see the module's docstring.

    Args:
        denoise: the denoiser.
        known: ``[B, C, h, w]``, the answer outside of the mask.
        mask: bool ``[B, 1, h, w]``, true where the denoiser decides.
    """

    def __init__(self, denoise: Denoise, known: Tensor, mask: Tensor) -> None:
        self._denoise = denoise
        self._known, self._mask = known.clone(), mask.clone()
        self._result = torch.empty_like(known)
        self._unguided = torch.empty_like(known)

    def take(self, other: KnownRegion) -> None:
        """Know what ``other`` knows, at the addresses that captured graphs read."""
        self._known.copy_(other._known)
        self._mask.copy_(other._mask)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """As the denoiser; the result is overwritten by the next call."""
        return torch.where(self._mask, self._denoise(x, sigma), self._known, out=self._result)

    @property
    def unconditional(self) -> Tensor:
        """The denoiser's result without guidance, with the same known part."""
        unguided: Tensor = self._denoise.unconditional  # type: ignore[attr-defined]
        return torch.where(self._mask, unguided, self._known, out=self._unguided)


class KnownRegionOfDenoiser(KnownRegion):
    """The same around a `Denoiser`, which a graph can capture."""

    _denoise: Denoiser

    def denoise(self, x: Tensor, numbers: Tensor, evaluation: Evaluation) -> Tensor:
        """As `Denoiser.denoise`."""
        denoised = self._denoise.denoise(x, numbers, evaluation)
        return torch.where(self._mask, denoised, self._known, out=self._result)

    def numbers(self, sigma: float) -> tuple[float, float, float, float]:
        """As `Denoiser.numbers`."""
        return self._denoise.numbers(sigma)

    def evaluations(self, sigmas: Iterable[float]) -> tuple[Evaluation, ...]:
        """As `Denoiser.evaluations`."""
        return self._denoise.evaluations(sigmas)

    def mode(self) -> Hashable:
        """As `Denoiser.mode`."""
        return self._denoise.mode()

    def held(self) -> tuple[Tensor, ...]:
        """As `Denoiser.held`."""
        return self._denoise.held()


def is_inpainting(unet: EngineSpec) -> bool:
    """Whether a UNet sees mask and masked image: its sample has more channels than its
    prediction."""
    return unet.input("sample").shape[1] != unet.outputs[0].shape[1]


@dataclass(frozen=True)
class Told:
    """What a prepared denoiser is told of the image.

    Attributes:
        known: ``[B, C, h, w]``, and
        mask: bool ``[B, 1, h, w]``, for :class:`KnownRegion`; or
        channels: ``[B, 1 + C, h, w]``, the further inputs of an inpainting UNet.
    """

    known: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None

    def tell(
        self, denoiser: Denoiser, image: int | None = None
    ) -> Denoiser | KnownRegionOfDenoiser:
        """The denoiser to run, for all images or for one of them."""
        which = slice(None) if image is None else slice(image, image + 1)
        if self.channels is not None:
            denoiser.write_extra_channels(self.channels[which])
        if self.known is None or self.mask is None:
            return denoiser
        return KnownRegionOfDenoiser(denoiser, self.known[which], self.mask[which])


def begin(
    image: InitImage | None, noise: Tensor, encode: Encode, *, scale: int, inpaints: bool
) -> tuple[Tensor, Told]:
    """How a job begins.

    Args:
        image: the image that it begins with; None is none.
        noise: float32 ``[B, C, h, w]``, already times the σ of the beginning.
        encode: the VAE's encoder.
        scale: pixels for one latent.
        inpaints: the UNet sees mask and masked image.

    Returns:
        The first state, and what is to be told to the denoiser.
    """
    if image is None:
        return noise, Told()
    known = image.encoded(encode).to(noise)
    mask = image.latent_mask(scale)
    if mask is None:
        return known + noise, Told()
    mask = mask.to(noise.device)
    if inpaints:
        told = Told(channels=_inpainting_channels(image, mask, encode))
        return (noise if image.anew else known + noise), told
    state = torch.where(mask, noise, known + noise) if image.anew else known + noise
    return state, Told(known, mask)


def _inpainting_channels(image: InitImage, mask: Tensor, encode: Encode) -> Tensor:
    """What an inpainting UNet sees besides the sample, ``[B, 1 + C, h, w]``: the mask, and the
    latents of the image with the masked pixels grey."""
    assert image.pixels is not None  # both are checked by read_init_image
    assert image.mask is not None
    masked = encode(image.pixels * (image.mask < 0.5))
    return torch.cat([mask.to(masked), masked], dim=1)
