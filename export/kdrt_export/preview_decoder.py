"""A small decoder for previews (``--preview-decoder``), such as TAESD, beside the VAE's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from kdrt_export.components import ExportDecoder
from kdrt_export.errors import SourceError, UnsupportedModel

_DOWNLOAD = ["config.json", "*.safetensors"]
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
        UnsupportedModel: it decodes latents of another kind.
    """

    def __init__(self, autoencoder: AutoencoderTiny, *, channels: int, scale: int) -> None:
        super().__init__()
        config = autoencoder.config
        enlarged = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
        if (config.latent_channels, enlarged) != (channels, scale):
            raise UnsupportedModel(
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


def load_preview_decoder(
    source: str, download: Callable[[str, list[str]], Path]
) -> AutoencoderTiny:
    """Load a tiny autoencoder for its decoder.

    Args:
        source: a diffusers folder of an ``AutoencoderTiny``, a hub id, or a ``.safetensors`` file:
            one of diffusers, or the ``taesd_decoder`` of the original project.
        download: fetches files of a hub id, by patterns.

    Raises:
        SourceError: it means nothing, or cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        autoencoder = _from_file(path)
    elif path.is_dir():
        autoencoder = _from_folder(path)
    elif source.count("/") == 1 and not path.suffix:
        autoencoder = _from_folder(download(source, _DOWNLOAD))
    else:
        raise SourceError(
            f"'{source}' is no preview decoder: give a diffusers folder, a .safetensors file or a "
            "hub id (owner/name), such as madebyollin/taesd or madebyollin/taesdxl"
        )
    return autoencoder.eval().requires_grad_(False)


def _from_folder(folder: Path) -> AutoencoderTiny:
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise SourceError(f"{folder} holds no AutoencoderTiny: config.json and .safetensors")
    try:
        return AutoencoderTiny.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise SourceError(f"cannot load an AutoencoderTiny from {folder}: {reason[0]}") from error


def _from_file(path: Path) -> AutoencoderTiny:
    """Files hold weights alone: all published ones have the default architecture, or that with
    more latent channels."""
    if path.suffix != ".safetensors":
        raise SourceError(f"{path.name}: preview decoders are read from .safetensors files only")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises a type of its own, and OSError
        raise SourceError(f"cannot read {path}: {error}") from error
    if any(name.startswith("decoder.") for name in weights):
        weights = {
            name.removeprefix("decoder."): weight
            for name, weight in weights.items()
            if name.startswith("decoder.")
        }
    else:
        weights = {_renamed(name): weight for name, weight in weights.items()}
    channels = weights[_FIRST].shape[1] if _FIRST in weights else 4
    autoencoder = AutoencoderTiny(latent_channels=channels)
    try:
        autoencoder.decoder.load_state_dict(weights)
    except RuntimeError as error:
        raise SourceError(
            f"{path.name} holds no decoder of TAESD's architecture; export one of another "
            "architecture from its diffusers folder"
        ) from error
    return autoencoder.float()


def _renamed(name: str) -> str:
    """The original numbers the layers from 1: its layer 0 is the clamp, which has no weights."""
    number, dot, rest = name.partition(".")
    return f"layers.{int(number) - 1}{dot}{rest}" if number.isdigit() else name
