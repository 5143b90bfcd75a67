"""Tiny networks of every kind kdrt exports, with every parameter random: zero biases and unit
norms would hide a dropped bias or a forgotten norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ANY = TypeVar("ANY", bound=nn.Module)


def randomized(network: ANY, seed: int = 0) -> ANY:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (
            noise / max(parameter[0].numel(), 4) ** 0.5
            if parameter.ndim > 1
            else (0.5 * noise + (1.0 if parameter.data.mean() > 0.5 else 0.0))
        )
    return network.eval().requires_grad_(False)


def unet(kind: str, **changes: Any) -> UNet2DConditionModel:
    """``sd`` (convolutional projections), ``sd2`` (linear ones), ``sdxl`` (size conditioning), or
    ``lcm`` (guidance embedding)."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 4),
        "norm_num_groups": 4,
    }
    if kind in ("sd2", "sdxl"):
        config |= {"use_linear_projection": True}
    if kind == "lcm":
        config |= {"time_cond_proj_dim": 12}
    if kind == "sdxl":
        config |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 20,
        }
    return randomized(UNet2DConditionModel(**(config | changes)))


def controlnet(kind: str, seed: int = 1, **changes: Any) -> ControlNetModel:
    """One for the UNet of this kind and pixels twice as many as latents, its zero convolutions as
    random as the rest."""
    hint = {"conditioning_embedding_out_channels": (4, 8)}
    return _control_for(unet(kind).config, seed, **(hint | changes))


def control_for(folder: Path) -> ControlNetModel:
    """One for a UNet in diffusers' folder format, with four pixels for a latent."""
    config = UNet2DConditionModel.load_config(folder)
    return _control_for(config, 1, conditioning_embedding_out_channels=(4, 8, 8))


def _control_for(own: Any, seed: int, **changes: Any) -> ControlNetModel:
    config = {name: own[name] for name in _OF_CONTROLNET if name in own}
    return randomized(ControlNetModel(**(config | changes)), seed)


_OF_CONTROLNET = (
    *("block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim"),
    *("attention_head_dim", "norm_num_groups", "use_linear_projection"),
    *("transformer_layers_per_block", "addition_embed_type", "addition_time_embed_dim"),
    "projection_class_embeddings_input_dim",
)


def t2i_adapter(kind: str, seed: int = 2, **changes: Any) -> T2IAdapter:
    """One for the UNet of this kind and pixels twice as many as latents."""
    config: dict[str, Any] = {
        "channels": [16, 32, 32],
        "num_res_blocks": 1,
        "downscale_factor": 2,
        "adapter_type": "full_adapter",
    }
    if kind == "sdxl":
        config |= {
            "channels": [16, 32, 32, 32],
            "downscale_factor": 4,
            "adapter_type": "full_adapter_xl",
        }
    return randomized(T2IAdapter(**(config | changes)), seed)


def vae(**changes: Any) -> AutoencoderKL:
    config: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.37,
    }
    return randomized(AutoencoderKL(**(config | changes)))


def text_encoder(projection: bool = False, vocabulary: int = 1000) -> Any:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=20,
        projection_dim=20,
        eos_token_id=vocabulary - 1,
        bos_token_id=vocabulary - 2,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return randomized(kind(config))


def save_sd_folder(folder: Path, tokenizer: CLIPTokenizer, **unet_changes: Any) -> Path:
    """A whole tiny Stable Diffusion 1 pipeline in diffusers' folder format."""
    StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(vocabulary=len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet("sd", **unet_changes),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
