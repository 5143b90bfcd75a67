"""A random IP-Adapter for a tiny UNet, as a file of its authors, and images for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.support.tiny_networks import randomized

SIDE, EMBEDDING, HIDDEN = 32, 20, 24
"""The image encoder's: pixels of a side, numbers of an embedding and of a hidden state."""

FACE = 12
"""Numbers of a face's embedding."""


def _linear(width: int, random: Any) -> dict[str, Tensor]:
    return {
        "proj.weight": random(4 * width, EMBEDDING),
        "proj.bias": random(4 * width),
        "norm.weight": 1 + random(width),
        "norm.bias": random(width),
    }


def _full(width: int, random: Any) -> dict[str, Tensor]:
    return {
        "proj.0.weight": random(HIDDEN, HIDDEN),
        "proj.0.bias": random(HIDDEN),
        "proj.2.weight": random(width, HIDDEN),
        "proj.2.bias": random(width),
        "proj.3.weight": 1 + random(width),
        "proj.3.bias": random(width),
    }


def _plus(width: int, random: Any, tokens: int = 5, inner: int = 20) -> dict[str, Tensor]:
    return {
        "latents": random(1, tokens, inner),
        "proj_in.weight": random(inner, HIDDEN),
        "proj_in.bias": random(inner),
        "proj_out.weight": random(width, inner),
        "proj_out.bias": random(width),
        "norm_out.weight": 1 + random(width),
        "norm_out.bias": random(width),
        **_resampler_layers(inner, random),
    }


def _resampler_layers(inner: int, random: Any) -> dict[str, Tensor]:
    heads = 64  # one, of the width that diffusers takes for granted
    layers: dict[str, Tensor] = {}
    for layer in range(4):
        layers |= {
            f"layers.{layer}.0.norm1.weight": 1 + random(inner),
            f"layers.{layer}.0.norm1.bias": random(inner),
            f"layers.{layer}.0.norm2.weight": 1 + random(inner),
            f"layers.{layer}.0.norm2.bias": random(inner),
            f"layers.{layer}.0.to_q.weight": random(heads, inner),
            f"layers.{layer}.0.to_kv.weight": random(2 * heads, inner),
            f"layers.{layer}.0.to_out.weight": random(inner, heads),
            f"layers.{layer}.1.0.weight": 1 + random(inner),
            f"layers.{layer}.1.0.bias": random(inner),
            f"layers.{layer}.1.1.weight": random(4 * inner, inner),
            f"layers.{layer}.1.3.weight": random(inner, 4 * inner),
        }
    return layers


def _faceid(width: int, random: Any) -> dict[str, Tensor]:
    return {
        "proj.0.weight": random(2 * FACE, FACE),
        "proj.0.bias": random(2 * FACE),
        "proj.2.weight": random(4 * width, 2 * FACE),
        "proj.2.bias": random(4 * width),
        "norm.weight": 1 + random(width),
        "norm.bias": random(width),
    }


def _faceid_plus(width: int, random: Any) -> dict[str, Tensor]:
    inner = width
    plus = _plus(width, random, inner=inner)
    del plus["latents"]
    return {
        "proj.0.weight": random(2 * FACE, FACE),
        "proj.0.bias": random(2 * FACE),
        "proj.2.weight": random(4 * inner, 2 * FACE),
        "proj.2.bias": random(4 * inner),
        "norm.weight": 1 + random(inner),
        "norm.bias": random(inner),
        **{f"perceiver_resampler.{name}": tensor for name, tensor in plus.items()},
    }


_PROJECTIONS: dict[str, Callable[[int, Any], dict[str, Tensor]]] = {
    "linear": _linear,
    "full": _full,
    "plus": _plus,
    "faceid": _faceid,
    "faceid-plus": _faceid_plus,
}


def image(width: int = 45, height: int = 37, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def vision_model() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    return randomized(CLIPVisionModelWithProjection(config))


def write_adapter(
    folder: Path, unet: Any, kind: str = "linear", *, seed: int = 4, lora: int = 0
) -> Path:
    """An adapter of a kind, in the spelling of its authors; ``lora`` is the rank of the LoRA that
    FaceID's have inside."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = unet.config.cross_attention_dim
    projection = _PROJECTIONS[kind](width, random)
    state = {f"image_proj.{name}": tensor for name, tensor in projection.items()}
    for number, path in enumerate(unet.attn_processors if lora else ()):
        attention = unet.get_submodule(path.removesuffix(".processor"))
        for each in ("q", "k", "v", "out"):
            weight = attention.to_out[0] if each == "out" else getattr(attention, f"to_{each}")
            rows, columns = weight.weight.shape
            state[f"ip_adapter.{number}.to_{each}_lora.down.weight"] = random(lora, columns)
            state[f"ip_adapter.{number}.to_{each}_lora.up.weight"] = random(rows, lora)
    sites = [path for path in unet.attn_processors if "attn2" in path]
    for number, path in enumerate(sites):
        rows = unet.get_submodule(path.removesuffix(".processor")).to_k.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = random(rows, width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "ip.safetensors")
    vision_model().save_pretrained(folder / "image_encoder")
    return folder / "ip.safetensors"
