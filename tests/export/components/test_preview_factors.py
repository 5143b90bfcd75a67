"""The small image of a latent, fitted to a VAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from kdrt.bundle import LatentFacts
from kdrt.vae.preview import Previewer
from kdrt_export.components.preview_factors import preview_factors
from kdrt_export.demo.scenes import draw, random_scene
from kdrt_export.sources import demo_folder


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """The demo model's."""
    return AutoencoderKL.from_pretrained(demo_folder() / "vae").eval().requires_grad_(False)


def test_a_preview_looks_like_the_image(vae: AutoencoderKL) -> None:
    """On drawings the fit has never seen. The demo's VAE is far from linear: the best affine map,
    fitted to drawings themselves, leaves 0.36 of their variance."""
    generator = np.random.default_rng(0)
    scenes = [np.asarray(draw(random_scene(generator), 64)) for _ in range(8)]
    images = torch.tensor(np.stack(scenes)).permute(0, 3, 1, 2) / 127.5 - 1
    latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    facts = LatentFacts(
        channels=4, scale=4, default_height=64, default_width=64, preview=preview_factors(vae)
    )
    previews = np.stack([np.asarray(preview) for preview in Previewer(facts)(latents)])
    shown = torch.tensor(previews).permute(0, 3, 1, 2) / 127.5 - 1
    wanted = functional.avg_pool2d(images, 4)
    unexplained = (shown - wanted).square().mean() / wanted.var()
    assert unexplained < 0.6


def test_statistics_of_the_latents_are_part_of_the_map(vae: AutoencoderKL) -> None:
    """A VAE whose latents are shifted and scaled for the sampler gives the same images."""
    plain = torch.tensor(preview_factors(vae))
    mean, std = [0.3, -0.2, 0.1, 0.5], [0.5, 2.0, 1.5, 0.8]
    vae.register_to_config(latents_mean=mean, latents_std=std)
    shifted = torch.tensor(preview_factors(vae))
    vae.register_to_config(latents_mean=None, latents_std=None)
    z = torch.randn(4)
    ours = torch.cat([z * vae.config.scaling_factor, torch.ones(1)])
    theirs = (z - torch.tensor(mean)) * vae.config.scaling_factor / torch.tensor(std)
    theirs = torch.cat([theirs, torch.ones(1)])
    torch.testing.assert_close(theirs @ shifted, ours @ plain, rtol=1e-2, atol=1e-2)
