"""A random IP-Adapter for a tiny UNet, as a file of its authors, and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.support.tiny_networks import randomized

SIDE, EMBEDDING = 32, 20


def image(width: int = 45, height: int = 37, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def vision_model() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    return randomized(CLIPVisionModelWithProjection(config))


def write_adapter(folder: Path, unet: Any) -> Path:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = unet.config.cross_attention_dim
    state = {
        "image_proj.proj.weight": random(4 * width, EMBEDDING),
        "image_proj.proj.bias": random(4 * width),
        "image_proj.norm.weight": 1 + random(width),
        "image_proj.norm.bias": random(width),
    }
    sites = [path for path in unet.attn_processors if "attn2" in path]
    for number, path in enumerate(sites):
        rows = unet.get_submodule(path.removesuffix(".processor")).to_k.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = random(rows, width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "ip.safetensors")
    vision_model().save_pretrained(folder / "image_encoder")
    return folder / "ip.safetensors"
