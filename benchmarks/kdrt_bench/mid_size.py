"""A model between the demo and Stable Diffusion, with random weights: large enough that a UNet run
is all arithmetic, small enough that a few hundred requests take minutes on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WIDTH = 256
"""Of the text encoder, and of what the UNet attends to."""

_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (
        "config.json",
        {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [48, 96, 192],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "cross_attention_dim": _WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
        },
    ),
    "vae": (
        "config.json",
        {
            "_class_name": "AutoencoderKL",
            "sample_size": 256,
            "latent_channels": 4,
            "block_out_channels": [16, 32, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 1,
            "norm_num_groups": 16,
        },
    ),
    "text_encoder": (
        "config.json",
        {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    ),
    "scheduler": (
        "scheduler_config.json",
        {
            "_class_name": "PNDMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
        },
    ),
}


def export_mid_size(folder: Path) -> Path:
    """Export it, 256 pixels a side, in less than a minute.

    Args:
        folder: where the bundle goes, ``folder / "mid-size-bundle"``.

    Returns:
        The bundle.
    """
    from kdrt_export.stage import export

    source = folder / "mid-size"
    source.mkdir()
    index = {"_class_name": "StableDiffusionPipeline"}
    (source / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    for part, (name, config) in _PARTS.items():
        (source / part).mkdir()
        (source / part / name).write_text(json.dumps(config), encoding="utf-8")
    return export(
        str(source),
        folder / "mid-size-bundle",
        precision="fp32",
        random_weights=True,
        safety_checker=False,
    )
