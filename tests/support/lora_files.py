"""Random LoRAs, written the way each trainer writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from kdrt_export.sources import demo_folder
from tests.support.tiny_networks import text_encoder, unet, vae

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")

Layers = dict[tuple[str, str], tuple[Tensor, Tensor, float]]
"""Component and module's path to down, up and alpha."""


def pipeline(family: str) -> Any:
    """A tiny diffusers pipeline with every parameter random."""
    tokenizer = CLIPTokenizer.from_pretrained(str(demo_folder() / "tokenizer"), model_max_length=20)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    words = len(tokenizer)
    if family == "sd":
        return StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(vocabulary=words),
            tokenizer=tokenizer,
            unet=unet("sd"),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(vocabulary=words),
        text_encoder_2=text_encoder(projection=True, vocabulary=words),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet("sdxl", cross_attention_dim=48),
        scheduler=scheduler,
        add_watermarker=False,
    )


def random_lora(
    networks: Mapping[str, nn.Module],
    wanted: Sequence[str],
    *,
    rank: int = 3,
    alpha: float | None = 1.5,
    seed: int = 0,
) -> Layers:
    """A LoRA on every module whose path ends in one of ``wanted``."""
    generator = torch.Generator().manual_seed(seed)
    layers: Layers = {}
    for component, network in networks.items():
        for path, module in network.named_modules():
            if not path.endswith(tuple(wanted)) or not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            out, into, *kernel = module.weight.shape
            down = torch.randn(rank, into, *kernel, generator=generator) / into**0.5
            up = torch.randn(out, rank, *[1 for _ in kernel], generator=generator) / rank
            layers[component, path] = (down, up, float(rank if alpha is None else alpha))
    assert layers
    return layers


def networks(pipe: Any) -> dict[str, nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def kohya(layers: Layers, rename: Callable[[str], str] = lambda path: path) -> dict[str, Tensor]:
    two = any(component == "text_encoder_2" for component, _ in layers)
    prefixes = {"unet": "unet", "text_encoder": "te1" if two else "te", "text_encoder_2": "te2"}
    state: dict[str, Tensor] = {}
    for (component, path), (down, up, alpha) in layers.items():
        module = rename(path) if component == "unet" else with_text_model(path)
        key = f"lora_{prefixes[component]}_{module}".replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def kohya_with_ldm_names(layers: Layers) -> dict[str, Tensor]:
    return kohya(layers, ldm_name)


def peft(layers: Layers) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for (component, path), (down, up, _) in layers.items():
        state |= {
            f"{component}.{path}.lora_A.weight": down,
            f"{component}.{path}.lora_B.weight": up,
        }
    return state


def old_diffusers(layers: Layers) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for (component, path), (down, up, _) in layers.items():
        key = f"{component}.{path}"
        if component == "unet":
            if match := re.fullmatch(r"(.*)\.(to_[qkv]|to_out)(\.0)?", key):
                key = f"{match[1]}.processor.{match[2]}_lora"
            else:
                key += ".lora"
        else:
            key += ".lora_linear_layer"
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return state


def with_text_model(path: str) -> str:
    return path if path.startswith(("text_model", "text_projection")) else f"text_model.{path}"


def ldm_name(path: str) -> str:
    """By hand, for UNets of three blocks with one resnet each: see ``tiny.unet``."""
    inside = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    kinds = {"resnets": 0, "attentions": 1}
    if match := re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions)\.0\.(.+)", path):
        block, kind, rest = match.groups()
        return f"input_blocks.{1 + 2 * int(block)}.{kinds[kind]}.{inside.get(rest, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{2 + 2 * int(match[1])}.0.op"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", path):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{inside.get(match[3], match[3])}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", path):
        block, kind, layer, rest = match.groups()
        row = 2 * int(block) + int(layer)
        return f"output_blocks.{row}.{kinds[kind]}.{inside.get(rest, rest)}"
    raise AssertionError(path)
