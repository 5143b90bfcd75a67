"""The affine map from latents to a small image, fitted to a model's own VAE."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from kdrt_export.components import ExportVaeDecoder, vae_scale

_IMAGES, _SIDE = 8, 8
"""Latents of 8 by 8: half a million pixels in all for a VAE of scale 8."""

Factors = tuple[tuple[float, float, float], ...]


@torch.no_grad()
def preview_factors(vae: AutoencoderKL) -> Factors:
    """Fit ``pixel ≈ Σ factor[c] · latent[c] + constant`` by least squares.

    Images of random smooth colours are encoded and decoded again by the VAE itself; a pixel is
    the mean over the block that one latent stands for.

    Returns:
        C + 1 rows of RGB, in [-1, 1]: a row for each channel as the sampler has it (scaled), the
        last the constant.
    """
    scale = vae_scale(vae)
    images = _images(_SIDE * scale)
    mean = vae.encode(images).latent_dist.mean
    decoder = ExportVaeDecoder(vae)
    if decoder.statistics is None:
        latents = mean * decoder.scaling_factor
    else:
        center, spread = decoder.statistics
        latents = (mean - center) * decoder.scaling_factor / spread
    pixels = functional.avg_pool2d(decoder(latents), scale)
    inputs = latents.movedim(1, -1).flatten(0, 2)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    targets = pixels.movedim(1, -1).flatten(0, 2).double()
    # A VAE with dead channels leaves the fit open; a little weight on small factors closes it.
    gram = inputs.T @ inputs + 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    factors = torch.linalg.solve(gram, inputs.T @ targets)
    return tuple((r, g, b) for r, g, b in factors.tolist())


def _images(side: int) -> torch.Tensor:
    """Colours at random on grids of 1 to 4 by 4, blurred or in blocks: float32 ``[B, 3, H, W]``
    in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(_IMAGES):
        cells = index % 4 + 1
        colours = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        mode = "bilinear" if index % 8 < 4 else "nearest"
        images.append(functional.interpolate(colours, size=(side, side), mode=mode))
    return torch.cat(images)
