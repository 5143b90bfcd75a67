"""A small decoder for previews (``--preview-decoder``), such as TAESD, beside the VAE's own."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from kdrt_export.components import ExportDecoder
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.sources.part import PartPlace
from kdrt_export.sources.weight_files import read_tensors
from kdrt_export.sources.weights import compare

_DECODER = PartPlace("preview decoder", "vae", "madebyollin/taesd or madebyollin/taesdxl")
_FIRST = "layers.0.weight"


class ExportPreviewDecoder(ExportDecoder):
    """latents [B,C,h,w] as the sampler leaves them → image [B,3,s·h,s·w] in about [-1, 1].

    Tiny autoencoders are trained on latents with the VAE's scaling factor applied, which is how
    the sampler has them; their own factor is 1 for all but the odd one.

    Args:
        autoencoder: the decoder and the encoder, which is not exported.
        channels: those of the model's latents.
        scale: pixels of the model for one latent.

    Raises:
        UnsupportedModelError: it decodes latents of another kind.
    """

    def __init__(self, autoencoder: AutoencoderTiny, *, channels: int, scale: int) -> None:
        super().__init__()
        config = autoencoder.config
        enlarged = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        if (config.latent_channels, enlarged) != (channels, scale):
            raise UnsupportedModelError(
                f"the preview decoder takes latents of {config.latent_channels} channels, "
                f"{enlarged} pixels each; this model's have {channels} channels, {scale} pixels"
            )
        self.decoder = autoencoder.decoder
        self.scaling_factor: float = config.scaling_factor
        self.latent_shape = ("B", channels, "h", "w")
        self.image_shape = ("B", config.out_channels, f"{scale}*h", f"{scale}*w")
        self.spec = self.make_spec("float32")

    def rewrite(self) -> None:
        """Convolutions only: there is nothing to rewrite."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.decoder(latents / self.scaling_factor)
        return image


def load_preview_decoder(source: str, *, allow_pickle: bool = False) -> AutoencoderTiny:
    """Load a tiny autoencoder for its decoder.

    Args:
        source: a diffusers folder of an ``AutoencoderTiny``, a hub id, or a file, on disk or as
            ``owner/name:path``: one of diffusers, or the ``taesd_decoder`` of the original project.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: it means nothing, or cannot be read.
    """
    path = _DECODER.find(source, allow_pickle=allow_pickle)
    if path.is_dir():
        return _DECODER.from_folder(AutoencoderTiny, path, allow_pickle=allow_pickle).network()
    return _from_file(path)


def _from_file(path: Path) -> AutoencoderTiny:
    """Files hold weights alone: all published ones have the default architecture, or that with
    more latent channels."""
    weights = read_tensors(path)
    if any(name.startswith("decoder.") for name in weights):
        weights = {
            name.removeprefix("decoder."): weight
            for name, weight in weights.items()
            if name.startswith("decoder.")
        }
    else:
        weights = {_renamed(name): weight for name, weight in weights.items()}
    first = weights.get(_FIRST)
    channels = first.shape[1] if first is not None and first.ndim == 4 else 4
    autoencoder = AutoencoderTiny(latent_channels=channels)
    compare(
        autoencoder.decoder.state_dict(),
        weights,
        f"{path.name} holds no decoder of TAESD's architecture",
        "one of another architecture is exported from its diffusers folder",
    )
    autoencoder.decoder.load_state_dict(weights)
    return autoencoder.float().eval().requires_grad_(False)


def _renamed(name: str) -> str:
    """The original numbers the layers from 1: its layer 0 is the clamp, which has no weights."""
    number, dot, rest = name.partition(".")
    is_number = number.isdecimal() and len(number) < 4
    return f"layers.{int(number) - 1}{dot}{rest}" if is_number else name
