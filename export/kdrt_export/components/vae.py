"""The two halves of the VAE."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import nn

from kdrt_engines.spec import Dim, EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.components.sizes import positive, sides
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.rewrites.fused_qkv import rewrite_attention


class ExportDecoder(ExportComponent):
    """What makes images of latents: one tensor ``latents`` in, one ``image`` out, in the shapes
    that a subclass sets."""

    latent_shape: tuple[Dim, ...]
    image_shape: tuple[Dim, ...]

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("latents", dtype, self.latent_shape),),
            (TensorSpec("image", dtype, self.image_shape),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)


class ExportVaeDecoder(ExportDecoder):
    """latents [B,C,h,w] as the sampler leaves them → image [B,3,s·h,s·w] in about [-1, 1]."""

    def __init__(self, vae: AutoencoderKL, *, fuse_qkv: bool = True) -> None:
        super().__init__()
        self.fuse_qkv = fuse_qkv
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        config = vae.config
        self.scaling_factor = _scaling_factor(vae)
        self.statistics = _latent_statistics(vae)
        self.usual_height = vae_tile(vae)
        self.latent_shape = ("B", config.latent_channels, "h", "w")
        self.image_shape = image_shape(vae, config.out_channels)
        self.spec = self.make_spec("float32")

    def rewrite(self) -> None:
        rewrite_attention(self.decoder, fuse=self.fuse_qkv)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        if self.statistics is None:
            latents = latents / self.scaling_factor
        else:
            mean, std = self.statistics
            latents = latents * std / self.scaling_factor + mean
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class ExportVaeEncoder(ExportComponent):
    """image [B,3,s·h,s·w] in [-1, 1] → moments [B,2C,h,w]: mean, then log-variance, of the
    latents as the sampler takes them, with the scaling factor applied."""

    def __init__(self, vae: AutoencoderKL, *, fuse_qkv: bool = True) -> None:
        super().__init__()
        self.fuse_qkv = fuse_qkv
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.scaling_factor = _scaling_factor(vae)
        self.statistics = _latent_statistics(vae)
        self.usual_height = vae_tile(vae) * vae_scale(vae)
        self.moments_shape = ("B", 2 * vae.config.latent_channels, "h", "w")
        self.image_shape = image_shape(vae, vae.config.in_channels)
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("image", dtype, self.image_shape),),
            (TensorSpec("moments", dtype, self.moments_shape),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)

    def rewrite(self) -> None:
        rewrite_attention(self.encoder, fuse=self.fuse_qkv)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar + 2 * math.log(self.scaling_factor)
        if self.statistics is None:
            mean = mean * self.scaling_factor
        else:
            shift, spread = self.statistics
            mean = (mean - shift) * self.scaling_factor / spread
            logvar = logvar - 2 * spread.log()
        return torch.cat([mean, logvar], dim=1)


def _scaling_factor(vae: AutoencoderKL) -> float:
    """What the latents are multiplied by.

    Raises:
        UnsupportedModelError: it is no such number, or the latents are shifted too, as no pipeline
            of Stable Diffusion does it.
    """
    if vae.config.get("shift_factor"):
        raise UnsupportedModelError(
            f"a VAE with shift_factor={vae.config.shift_factor!r} belongs to another family of "
            "models; kdrt exports those of Stable Diffusion 1, 2 and XL"
        )
    return positive("scaling_factor", vae.config.scaling_factor)


def _latent_statistics(vae: AutoencoderKL) -> nn.ParameterList | None:
    """Mean and standard deviation of each latent channel, ``[1,C,1,1]``, where a VAE has them.

    Raises:
        UnsupportedModelError: they are not a number for each channel.
    """
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return None
    try:
        rows = [torch.tensor(values, dtype=torch.float32).flatten() for values in (mean, std)]
    except (TypeError, ValueError, RuntimeError):
        rows = []
    sizes = [len(row) for row in rows]
    if sizes != [config.latent_channels] * 2 or not (rows[0].isfinite() & (rows[1] > 0)).all():
        raise UnsupportedModelError(
            f"latents_mean and latents_std must be {config.latent_channels} numbers each in the "
            f"VAE's config.json, the latter above 0, not {mean!r} and {std!r}"
        )
    return nn.ParameterList(
        nn.Parameter(row.view(1, -1, 1, 1), requires_grad=False) for row in rows
    )


def image_shape(vae: AutoencoderKL, channels: int) -> tuple[int | str, ...]:
    """The symbolic shape of the images of a VAE."""
    scale = vae_scale(vae)
    return ("B", channels, f"{scale}*h", f"{scale}*w")


def vae_scale(vae: AutoencoderKL) -> int:
    """Pixels for one latent: the autoencoder halves once between blocks."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_tile(vae: AutoencoderKL) -> int:
    """Side of the images a VAE was trained at, in latents: diffusers' tile size."""
    return sides(vae.config.sample_size)[0] // vae_scale(vae)
