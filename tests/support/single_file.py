"""A tiny model as a single-file checkpoint, in the key layout of the original Stable Diffusion
repository (``model.diffusion_model.``, ``first_stage_model.``, ``cond_stage_model.``)."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
PLAYGROUND = {"edm_mean": MEAN, "edm_std": STD}
"""The markers in a checkpoint of Playground v2.5."""


def checkpoint(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel
) -> dict[str, torch.Tensor]:
    """State of the three networks under their original names."""
    state = _renamed(unet, _unet_modules(unet), "model.diffusion_model.")
    state |= _renamed(vae, _vae_modules(vae), "first_stage_model.")
    state |= {
        f"cond_stage_model.transformer.text_model.{name}": tensor
        for name, tensor in text_encoder.state_dict().items()
    }
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _renamed(
    network: torch.nn.Module, modules: dict[str, str], prefix: str
) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in network.state_dict().items():
        module = max((m for m in modules if name.startswith(f"{m}.")), key=len)
        new = modules[module] + name.removeprefix(module)
        for before, after in _RESNET.items() if "resnets" in module and prefix[0] == "m" else ():
            new = new.replace(f".{before}.", f".{after}.")
        if "attentions" in module and prefix[0] == "f":
            for before, after in _VAE_ATTENTION.items():
                new = new.replace(f".{before}.", f".{after}.")
            if tensor.ndim == 2:  # projections were 1×1 convolutions
                tensor = tensor[:, :, None, None]
        elif prefix[0] == "f":
            new = new.replace("conv_shortcut", "nin_shortcut")
        state[prefix + new] = tensor
    return state


def unet_shapes(unet: UNet2DConditionModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a UNet's tensors in the original layout; it may be on the meta device."""
    state = _renamed(unet, _unet_modules(unet), "model.diffusion_model.")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _unet_modules(unet: UNet2DConditionModel) -> dict[str, str]:
    names = {"conv_norm_out": "out.0", "conv_out": "out.2", **_down_modules(unet)}
    index = 0
    for b, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            names[f"up_blocks.{b}.resnets.{layer}"] = f"output_blocks.{index}.0"
            names[f"up_blocks.{b}.attentions.{layer}"] = f"output_blocks.{index}.1"
            index += 1
        place = 2 if hasattr(block, "attentions") else 1
        names[f"up_blocks.{b}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{place}.conv"
    return names


def _down_modules(unet: UNet2DConditionModel | ControlNetModel) -> dict[str, str]:
    """What a ControlNet has of a UNet."""
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    index = 1
    for b, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            names[f"down_blocks.{b}.resnets.{layer}"] = f"input_blocks.{index}.0"
            names[f"down_blocks.{b}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        names[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
        index += 1
    return names


def original_controlnet(controlnet: ControlNetModel) -> dict[str, torch.Tensor]:
    """The state of a ControlNet under its original names."""
    hint = controlnet.controlnet_cond_embedding
    names = {
        "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        "controlnet_mid_block": "middle_block_out.0",
        **{
            f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}"
            for i in range(len(hint.blocks))
        },
        **{
            f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0"
            for i in range(len(controlnet.controlnet_down_blocks))
        },
        **_down_modules(controlnet),
    }
    # The first letter of the prefix says that the names of residual blocks change.
    state = _renamed(controlnet, names, "m.")
    return {f"control_model.{name.removeprefix('m.')}": t for name, t in state.items()}


def _vae_modules(vae: AutoencoderKL) -> dict[str, str]:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, blocks, place in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        count = len(getattr(getattr(vae, half), blocks))
        for name in ("conv_in", "conv_out"):
            names[f"{half}.{name}"] = f"{half}.{name}"
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        names[f"{half}.mid_block.resnets.0"] = f"{half}.mid.block_1"
        names[f"{half}.mid_block.resnets.1"] = f"{half}.mid.block_2"
        names[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        for b in range(count):
            level = b if half == "encoder" else count - 1 - b  # the decoder counts from the image
            for layer in range(4):
                names[f"{half}.{blocks}.{b}.resnets.{layer}"] = (
                    f"{half}.{place}.{level}.block.{layer}"
                )
            sampler = "downsample" if half == "encoder" else "upsample"
            names[f"{half}.{blocks}.{b}.{sampler}rs.0"] = f"{half}.{place}.{level}.{sampler}"
    return names


def open_clip(encoder: CLIPTextModelWithProjection, prefix: str) -> dict[str, torch.Tensor]:
    """A CLIP text encoder's weights in OpenCLIP's layout, as SDXL's files have the second one."""
    text = encoder.text_model if hasattr(encoder, "text_model") else encoder
    state = {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "text_projection": encoder.text_projection.weight.t(),
    }
    state |= {f"ln_final.{n}": t for n, t in text.final_layer_norm.named_parameters()}
    for index, layer in enumerate(text.encoder.layers):
        block = f"transformer.resblocks.{index}"
        parts = [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]
        state |= {
            f"{block}.attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            f"{block}.attn.in_proj_bias": torch.cat([part.bias for part in parts]),
        }
        for ours, theirs in (
            (layer.self_attn.out_proj, "attn.out_proj"),
            (layer.layer_norm1, "ln_1"),
            (layer.layer_norm2, "ln_2"),
            (layer.mlp.fc1, "mlp.c_fc"),
            (layer.mlp.fc2, "mlp.c_proj"),
        ):
            state |= {f"{block}.{theirs}.{n}": t for n, t in ours.named_parameters()}
    return {f"{prefix}.{name}": tensor.clone().contiguous() for name, tensor in state.items()}
