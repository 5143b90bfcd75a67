"""ControlNets and T2I-Adapters: where they lie, and what their files hold.

A file holds weights alone. What kind of network it is follows from its tensors and, for a
ControlNet, from the UNet that it is for: it is a copy of a part of that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.sources.part import PartPlace
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weight_files import read_tensors
from kdrt_export.sources.weights import Weights

CONTROLNET = PartPlace("ControlNet", "controlnet", "lllyasviel/control_v11p_sd15_canny")
T2I_ADAPTER = PartPlace("T2I-Adapter", "adapter", "TencentARC/t2i-adapter-canny-sdxl-1.0")

_HINT = "it is incomplete, or for another family than this model"
_ORIGINAL = "control_model."
_OF_UNET = (
    *("flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention"),
    *("block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor"),
    *("act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "attention_head_dim"),
    *("num_attention_heads", "use_linear_projection", "upcast_attention", "mid_block_type"),
    *("resnet_time_scale_shift", "transformer_layers_per_block", "addition_embed_type"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)
"""What a ControlNet has in common with its UNet."""

_OTHERS = {
    "a control-LoRA": ("lora_controlnet", "*.up", "*.lora_up.weight"),
    "a ControlNet-Union": ("task_embedding", "control_add_embedding.linear_1.weight"),
    "a ControlLLLite": ("lllite_*",),
    "a ControlNet of a transformer (Flux, SD 3)": ("controlnet_x_embedder.*", "pos_embed.*"),
    "an IP-Adapter": ("ip_adapter.*", "image_proj.*"),
    "a ControlNet-XS": ("control_to_base_for_conv_in.*", "*.ctrl_to_base.*"),
}
"""Files that are taken for ControlNets and T2I-Adapters, by the tensors that tell them."""


def controlnet_weights(
    path: Path, unet: Mapping[str, Any], channels: int, *, allow_pickle: bool
) -> Weights[ControlNetModel]:
    """A ControlNet, whose weights are yet to be put into a network.

    Args:
        path: a folder, or a file in diffusers' or the original layout.
        unet: the configuration of the UNet it is for.
        channels: of the latents.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: there is none, or it is damaged.
        UnsupportedModelError: it is a network of another kind.
    """
    if path.is_dir():
        return CONTROLNET.from_folder(ControlNetModel, path, allow_pickle=allow_pickle)
    state = read_tensors(path)
    state = {name.removeprefix(_ORIGINAL): tensor for name, tensor in state.items()}
    _refuse_others(state, path, "ControlNet")
    config = {name: unet[name] for name in _OF_UNET if name in unet} | {"in_channels": channels}
    if "input_hint_block.0.weight" in state:
        with refused(f"{path.name} holds no ControlNet for this model"):
            state = _from_original(state, config)
    first = state.get("controlnet_cond_embedding.conv_in.weight")
    if first is None or first.ndim != 4:
        raise SourceError(
            f"{path.name} holds no ControlNet of Stable Diffusion: it has no "
            "controlnet_cond_embedding.conv_in.weight, nor input_hint_block.0.weight"
        )
    with refused(f"{path.name} holds no ControlNet for this model", _HINT):
        config |= {
            "conditioning_channels": first.shape[1],
            "conditioning_embedding_out_channels": _hint_widths(state),
            # It is not in the tensors; the one that has it, and those made of it, are called so.
            "global_pool_conditions": "shuffle" in path.name.lower(),
        }
        config |= _attention(state, len(config["block_out_channels"]))
    return Weights(ControlNetModel, config, state, path.name, _HINT)


def adapter_weights(
    path: Path, family: str, scale: int, *, allow_pickle: bool
) -> Weights[T2IAdapter]:
    """A T2I-Adapter, whose weights are yet to be put into a network.

    Args:
        path: a folder, or a file in diffusers' or the original layout.
        family: of the model.
        scale: pixels for a latent.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: there is none, or it is damaged.
        UnsupportedModelError: it is a network of another kind.
    """
    if path.is_dir():
        return T2I_ADAPTER.from_folder(T2IAdapter, path, allow_pickle=allow_pickle)
    state = read_tensors(path)
    _refuse_others(state, path, "T2I-Adapter")
    with refused(f"{path.name} holds no T2I-Adapter", _HINT):
        state = _adapter_tensors({n.removeprefix("adapter."): t for n, t in state.items()})
        config = _adapter_config(state, family, scale)
    return Weights(T2IAdapter, config, state, path.name, _HINT)


def _refuse_others(names: Collection[str], path: Path, wanted: str) -> None:
    for what, patterns in _OTHERS.items():
        told = re.compile("|".join(re.escape(p).replace(r"\*", ".*") for p in patterns))
        if any(told.fullmatch(name) for name in names):
            raise UnsupportedModelError(
                f"{path.name} is {what}, which cannot be exported as a {wanted}"
            )


def _from_original(
    state: dict[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors by diffusers' names, and by their own those it does not know."""
    labels = {
        f"add_embedding.linear_{number}.{kind}": state.pop(name)
        for number, place in ((1, "label_emb.0.0"), (2, "label_emb.0.2"))
        for kind in ("weight", "bias")
        if (name := f"{place}.{kind}") in state
    }
    converted = convert_controlnet_checkpoint(dict(state), dict(config))
    made = {name: tensor for name, tensor in converted.items() if tensor is not None}
    used = {id(tensor) for tensor in made.values()} | {t.data_ptr() for t in made.values()}
    left = {n: t for n, t in state.items() if id(t) not in used and t.data_ptr() not in used}
    return {**made, **labels, **left}


def _hint_widths(state: Mapping[str, torch.Tensor]) -> list[int]:
    """Channels between the convolutions of a ControlNet's embedding of its image."""
    prefix = "controlnet_cond_embedding"
    widths = [state[f"{prefix}.conv_in.weight"].shape[0]]
    for index in range(1, 2 * len(state), 2):
        block = state.get(f"{prefix}.blocks.{index}.weight")
        if block is None:
            break
        widths.append(block.shape[0])
    return widths


def _attention(state: Mapping[str, torch.Tensor], blocks: int) -> dict[str, Any]:
    """Which blocks attend to the prompt, and how many layers each has for that: small ControlNets
    have fewer than their UNet."""
    depths = dict[str, int]()
    for name in state:
        if (match := _ATTENTION.match(name)) is not None:
            layers = int(match["layer"] or -1) + 1
            depths[match["block"]] = max(depths.get(match["block"], 0), layers)
    names = [f"down_blocks.{index}" for index in range(blocks)]
    in_middle = depths.get("mid_block")
    layers_of = [depths.get(name, in_middle or 1) for name in names]
    return {
        "down_block_types": [
            "CrossAttnDownBlock2D" if name in depths else "DownBlock2D" for name in names
        ],
        "mid_block_type": "UNetMidBlock2D" if in_middle is None else "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": layers_of,
    }


_ATTENTION = re.compile(
    r"(?P<block>down_blocks\.\d+|mid_block)\.attentions\.0\.(transformer_blocks\.(?P<layer>\d+))?"
)


def _adapter_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by diffusers' names. Its authors number the residual blocks of a full adapter
    through, two for every size."""
    is_flat = any(_FLAT.fullmatch(name) and ".block" in name for name in state)
    made = dict[str, torch.Tensor]()
    for name, tensor in state.items():
        if is_flat and (match := _FLAT.fullmatch(name)) is not None:
            size, index = divmod(int(match[1]), 2)
            inside = "" if match[2] == "in_conv" else f"resnets.{index}."
            name = f"body.{size}.{inside}{match[2]}.{match[3]}"
        elif (match := _LIGHT.fullmatch(name)) is not None:
            name = f"body.{match[1]}.resnets.{match[2]}"
        made[f"adapter.{name}"] = tensor
    return made


_FLAT = re.compile(r"body\.(\d+)\.(block1|block2|in_conv)\.(\w+)")
_LIGHT = re.compile(r"body\.(\d+)\.body\.(.+)")


def _adapter_config(state: Mapping[str, torch.Tensor], family: str, scale: int) -> dict[str, Any]:
    """diffusers' configuration of an adapter with these tensors. Raises anything."""
    is_light = "adapter.conv_in.weight" not in state
    is_xl = family == "sdxl" and not is_light
    factor = 2 * scale if is_xl else scale
    first = state["adapter.body.0.in_conv.weight" if is_light else "adapter.conv_in.weight"]
    last = "out_conv" if is_light else "resnets.0.block2"
    channels = list[int]()
    while (name := f"adapter.body.{len(channels)}.{last}.weight") in state:
        channels.append(state[name].shape[0])
    inside = [
        n for n in state if re.fullmatch(r"adapter\.body\.0\.resnets\.\d+\.block1\.weight", n)
    ]
    images, rest = divmod(first.shape[1], factor**2)
    if rest:
        raise ValueError(f"it takes {first.shape[1]} numbers of {factor}×{factor} pixels")
    return {
        "in_channels": images,
        # diffusers counts the last size of a light one, which has the channels of that before.
        "channels": channels[:-1] if is_light else channels,
        "num_res_blocks": len(inside),
        "downscale_factor": factor,
        "adapter_type": "light_adapter" if is_light else f"full_adapter{'_xl' if is_xl else ''}",
    }
