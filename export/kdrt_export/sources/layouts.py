"""Networks in the layout of the original Stable Diffusion repositories, by diffusers' names.

The converters are diffusers'. They leave out what they do not know, which is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig

from kdrt_export.errors import SourceError
from kdrt_export.sources.checkpoint_file import is_marker
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weight_files import read_tensors

UNET = "model.diffusion_model."
_VAES = ("first_stage_model.", "vae.")
_TRAINING = ("loss.", "model_ema.")
"""What files of a VAE keep of its training."""
_ENCODERS = {
    0: (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.model.",
    ),
    1: (
        "conditioner.embedders.1.transformer.",
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",
    ),
}
"""Where the first and the second text encoder may be: those of transformers, those of OpenCLIP."""
_OPEN_CLIP = (
    *("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection"),
    *("visual.", "logit_scale", "attn_mask"),
)
"""How tensors of OpenCLIP begin: those of its text encoder, and those that are not used."""


def unet_tensors(path: Path, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A UNet by diffusers' names, from a whole checkpoint or a file with the UNet alone.

    Args:
        path: the file, in any layout.
        config: the UNet's, as diffusers has it.

    Raises:
        SourceError: the file is damaged, or holds no UNet.
    """
    state = {n: t for n, t in _part(path, (UNET, "unet.")).items() if not is_marker(n)}
    if "input_blocks.0.0.weight" in state:
        original = {f"{UNET}{name}": tensor for name, tensor in state.items()}
        with refused(f"{path.name} holds no UNet of this model"):
            return _converted(original, config, convert_ldm_unet_checkpoint)
    if "conv_in.weight" not in state:
        raise SourceError(f"{path.name} holds no UNet of Stable Diffusion")
    return state


def vae_tensors(path: Path, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A VAE by diffusers' names, from a whole checkpoint or a file with the VAE alone.

    Args:
        path: the file, in any layout.
        config: the VAE's, as diffusers has it.

    Raises:
        SourceError: the file is damaged, or holds no VAE.
    """
    state = {n: t for n, t in _part(path, _VAES).items() if not n.startswith(_TRAINING)}
    if any(name.startswith(("decoder.mid.", "encoder.mid.")) for name in state):
        with refused(f"{path.name} holds no VAE of this model"):
            return _converted(state, config, convert_ldm_vae_checkpoint)
    if "decoder.conv_in.weight" not in state:
        raise SourceError(
            f"{path.name} holds no VAE; give one with --vae, such as "
            "stabilityai/sd-vae-ft-mse for Stable Diffusion 1 and 2, or "
            "madebyollin/sdxl-vae-fp16-fix for SDXL"
        )
    return state


def text_encoder_tensors(path: Path, index: int, config: CLIPTextConfig) -> dict[str, torch.Tensor]:
    """A text encoder by transformers' names, from a whole checkpoint.

    Args:
        path: the file.
        index: which of the two places it has.
        config: the text encoder's.

    Raises:
        SourceError: the file is damaged, or holds no text encoder in that place.
    """
    state = read_tensors(path, lambda name: name.startswith(_ENCODERS[index]))
    for prefix in _ENCODERS[index]:
        part = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        if not part:
            continue
        if prefix.endswith(".transformer."):
            return part
        # Stable Diffusion 2 uses the last layer but one; its files have the last one too.
        unused = f"transformer.resblocks.{config.num_hidden_layers}."
        used = {n: t for n, t in part.items() if index or not n.startswith(unused)}
        with refused(f"{path.name} holds no text encoder of this model"):
            made = convert_open_clip_checkpoint(SimpleNamespace(config=config), used, prefix="")
        return {n: t for n, t in used.items() if not n.startswith(_OPEN_CLIP)} | made
    raise SourceError(
        f"{path.name} holds no {'second ' if index else ''}text encoder; if it is a UNet alone, "
        "export it on its base model: kdrt export sd15 --unet FILE"
    )


def _part(path: Path, prefixes: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors with one of these prefixes, without it; all tensors where none has one."""
    state = read_tensors(path)
    for prefix in prefixes:
        part = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        if part:
            return part
    return state


def _converted(
    original: dict[str, torch.Tensor],
    config: Mapping[str, Any],
    convert: Callable[..., dict[str, torch.Tensor | None]],
) -> dict[str, torch.Tensor]:
    """What ``convert`` makes, and by their own names the tensors it leaves out.

    It makes views, which lie where the tensor lay.
    """
    made = {name: t for name, t in convert(original, dict(config)).items() if t is not None}
    used = {tensor.data_ptr() for tensor in made.values()}
    left = {name: t for name, t in original.items() if t.data_ptr() not in used and t.numel()}
    return {**made, **left}
