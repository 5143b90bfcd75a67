"""The VAE of a pipeline, as diffusers shows it; its two halves can be called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from kdrt.common.streams import on_own_stream
from kdrt.common.validation import check_dense, finite_or_none
from kdrt.compat.absent import SaysWhatThereIs
from kdrt.compat.config import Config, recorded
from kdrt.compat.network_view import NetworkView
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import part_of_call
from kdrt.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class DecoderOutput:
    """Pixels ``[B, 3, H, W]`` in about [-1, 1]; also reachable as ``out[0]``."""

    sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]


@dataclass(frozen=True)
class LatentDistribution(SaysWhatThereIs):
    """The result of the encoder. Only its mean is exported."""

    mean: Tensor
    instead = "only the mean of a VAE is exported: mean, mode() and sample() give it"

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, generator: object = None) -> Tensor:
        """The mean. The noise around it is not exported; it is far too weak to be seen."""
        return self.mean


@dataclass(frozen=True)
class EncoderOutput:
    """``latent_dist``; also reachable as ``out[0]``."""

    latent_dist: LatentDistribution

    def __getitem__(self, index: int) -> LatentDistribution:
        return (self.latent_dist,)[index]


class VaeView(NetworkView):
    """The VAE's configuration, dtype and switches, and its two halves.

    The exported halves scale latents themselves, which diffusers' VAE does not do. :meth:`decode`
    and :meth:`encode` undo that, so that ``vae.decode(latents / vae.config.scaling_factor)`` works.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline, "vae", "vae_decoder")

    def _config(self) -> Config:
        pipeline, manifest = self.pipeline, self.pipeline.bundle.manifest
        facts = manifest.latents
        source = manifest.baked.vae or manifest.source
        return Config(
            {"sample_size": pipeline.vae.tiling_of().size * facts.scale}
            | recorded(pipeline.bundle, self.name)
            | {"_class_name": "AutoencoderKL", "_name_or_path": source},
            in_channels=3,
            out_channels=3,
            latent_channels=facts.channels,
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: only its two halves can be called."""
        raise InvalidRequestError(
            "the VAE runs in halves: call pipe.vae.encode(x) or pipe.vae.decode(z)"
        )

    @property
    def use_slicing(self) -> bool:
        """Whether images of a batch pass one by one: kdrt's default."""
        return self.pipeline.vae.slicing

    @property
    def use_tiling(self) -> bool:
        """Whether images larger than a tile pass in tiles."""
        return self.pipeline.vae.tiling is not None

    def enable_slicing(self) -> None:
        """Decode images of a batch one by one."""
        self.pipeline.vae.enable_slicing()

    def disable_slicing(self) -> None:
        """Decode the whole batch at once."""
        self.pipeline.vae.disable_slicing()

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode images larger than the VAE was trained at in tiles of that size."""
        if use_tiling:
            self.pipeline.vae.enable_tiling()
        else:
            self.pipeline.vae.disable_tiling()

    def disable_tiling(self) -> None:
        """Decode whole images, wherever the engine can."""
        self.pipeline.vae.disable_tiling()

    def check_latents(self, latents: object) -> None:
        """Raise InvalidRequestError unless these are latents ``[B, C, h, w]``."""
        _check_images("latents", latents, self.config.latent_channels)

    def check_pixels(self, pixels: object) -> None:
        """Raise InvalidRequestError unless these are pixels ``[B, 3, H, W]``."""
        _check_images("pixels", pixels, self.config.in_channels)

    def _scaling(self) -> tuple[float, Tensor, Tensor]:
        """What the exported halves do to latents: z = latents · std / factor + mean."""
        factor = finite_or_none(self.config.get("scaling_factor"))
        if not factor:
            raise InvalidRequestError(
                "this bundle does not know its VAE's scaling factor, as kdrt kept none when it was "
                "exported; export the model again, or decode with pipe(…) alone"
            )
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is None or std is None:
            mean, std = [0.0], [1.0]
        return factor, _for_channels(mean), _for_channels(std)

    @part_of_call
    @on_own_stream
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Pixels of latents ``[B, C, h, w]`` divided by the configuration's scaling factor.

        Raises:
            InvalidRequestError: these are no latents of this model.
            ShapeError: the engine was not made for this size.
        """
        self.check_latents(z)
        factor, mean, std = self._scaling()
        pixels = self.pipeline.vae.decoder((z.float() - mean.to(z)) * factor / std.to(z))
        return DecoderOutput(pixels) if return_dict else (pixels,)

    @part_of_call
    @on_own_stream
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> EncoderOutput | tuple[LatentDistribution]:
        """Latents of pixels ``[B, 3, H, W]`` in [-1, 1]; their ``latent_dist.mean`` times the
        configuration's scaling factor is what a sampler works on.

        Raises:
            InvalidRequestError: these are no pixels.
            BundleError: the bundle has no encoder.
            ShapeError: the sides are no multiples of the VAE's scale.
        """
        self.check_pixels(x)
        factor, mean, std = self._scaling()
        latents = self.pipeline.vae.encode(x.float())
        distribution = LatentDistribution(latents * std.to(latents) / factor + mean.to(latents))
        return EncoderOutput(distribution) if return_dict else (distribution,)


def _for_channels(values: Any) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(
            f"the statistics of this bundle's VAE are no numbers ({error}); export the model again"
        ) from error


def _check_images(name: str, value: object, channels: int) -> None:
    if isinstance(value, Tensor):
        check_dense(name, value)
    if (
        not isinstance(value, Tensor)
        or value.ndim != 4
        or value.shape[1] != channels
        or 0 in value.shape
        or value.is_complex()
    ):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidRequestError(
            f"{name} must be a tensor [B, {channels}, height, width], not {found}"
        )
