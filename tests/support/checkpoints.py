"""Tiny checkpoints in diffusers' folder format, with every parameter random.

Sizes are those of diffusers' own fast tests. Zero biases and unit norms would hide a dropped bias
or a forgotten norm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.tiny_model import BOS, EOS, clip_like_tokenizer

LENGTH = 16
WORDS = ("a small red circle", "blue", "a large green square and 2 yellow stars")


def save_checkpoint(
    folder: Path,
    kind: str = "sd",
    *,
    scheduler: dict[str, Any] | None = None,
    unet_changes: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a checkpoint of ``kind``: ``sd``, ``sd-v`` (v-prediction), ``sdxl`` or ``sdxl-v``.

    ``scheduler``, where given, becomes the exact content of the scheduler's file: which keys are
    missing from it matters.
    """
    family, _, velocity = kind.partition("-")
    parts: dict[str, Any] = {
        "vae": randomized(AutoencoderKL(**_VAE[family]), seed + 1),
        "unet": randomized(UNet2DConditionModel(**(_UNET[family] | (unet_changes or {}))), seed),
        "scheduler": PNDMScheduler(),
        "text_encoder": randomized(CLIPTextModel(_text_config(family, 0)), seed + 2),
        "tokenizer": tokenizer(EOS),
    }
    if family == "sd":
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **none)
    else:
        second = CLIPTextModelWithProjection(_text_config(family, 1))
        parts |= {"text_encoder_2": randomized(second, seed + 3), "tokenizer_2": tokenizer("!")}
        pipeline = StableDiffusionXLPipeline(**parts)
    pipeline.save_pretrained(folder)
    content = SCHEDULER if scheduler is None else scheduler
    if velocity:
        content = content | {"prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    return folder


SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
}


def randomized(network: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew: weights by their fan-in, the rest around what it was."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / max(parameter[0].numel(), 4) ** 0.5
        else:
            parameter.data = 0.5 * noise + parameter.data.mean().round()
    return network.eval().requires_grad_(False)


def tokenizer(pad: str) -> CLIPTokenizer:
    """A CLIP tokenizer with a vocabulary of a few words."""
    model = json.loads(clip_like_tokenizer().to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=pad,
        model_max_length=LENGTH,
    )


_VAE_COMMON = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
_VAE: dict[str, dict[str, Any]] = {
    "sd": {**_VAE_COMMON, "block_out_channels": (4, 8), "norm_num_groups": 2},
    "sdxl": {**_VAE_COMMON, "block_out_channels": (32, 64), "sample_size": 128},
}
_UNET: dict[str, dict[str, Any]] = {
    "sd": {
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "sample_size": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 2,
    },
    "sdxl": {
        "block_out_channels": (2, 4),
        "layers_per_block": 2,
        "sample_size": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": 64,
        "norm_num_groups": 1,
    },
}


def _text_config(family: str, index: int) -> CLIPTextConfig:
    known = clip_like_tokenizer()
    sizes = (
        {"intermediate_size": 64, "num_attention_heads": 8, "num_hidden_layers": 3}
        if family == "sd"
        else {"intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 5}
    )
    return CLIPTextConfig(
        vocab_size=known.get_vocab_size(),
        hidden_size=32,
        projection_dim=32,
        hidden_act="gelu" if family == "sdxl" else "quick_gelu",
        max_position_embeddings=LENGTH,
        bos_token_id=known.token_to_id(BOS),
        eos_token_id=known.token_to_id(EOS),
        **sizes,
    )
