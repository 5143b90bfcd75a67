"""The two halves of the VAE."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import nn

from kdrt_engines.spec import Dim, EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.components.sizes import sides
from kdrt_export.rewrites.fused_qkv import rewrite_attention


class ExportDecoder(ExportComponent):
    """What makes pictures of latents: one tensor ``latents`` in, one ``image`` out, in the shapes
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
        self.scaling_factor: float = config.scaling_factor
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
        self.scaling_factor: float = vae.config.scaling_factor
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


def _latent_statistics(vae: AutoencoderKL) -> nn.ParameterList | None:
    """Mean and standard deviation of each latent channel, ``[1,C,1,1]``, where a VAE has them."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return None
    shape = (1, config.latent_channels, 1, 1)
    return nn.ParameterList(
        nn.Parameter(torch.tensor(v).view(shape), requires_grad=False) for v in (mean, std)
    )


def image_shape(vae: AutoencoderKL, channels: int) -> tuple[int | str, ...]:
    """The symbolic shape of the pictures of a VAE."""
    scale = vae_scale(vae)
    return ("B", channels, f"{scale}*h", f"{scale}*w")


def vae_scale(vae: AutoencoderKL) -> int:
    """Pixels for one latent: the autoencoder halves once between blocks."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_tile(vae: AutoencoderKL) -> int:
    """Side of the pictures a VAE was trained at, in latents: diffusers' tile size."""
    return sides(vae.config.sample_size)[0] // vae_scale(vae)
