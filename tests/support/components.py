"""Components on tiny networks, of every kind that an export can meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel

from kdrt_export.components import (
    ExportComponent,
    ExportTextEncoder,
    ExportUNet,
    ExportVaeDecoder,
    ExportVaeEncoder,
)
from kdrt_export.components.controlnet import ExportControlHint, ExportControlNet
from kdrt_export.components.perturbed_unet import ExportPerturbedUNet, self_attentions
from kdrt_export.components.shallow_unet import ExportShallowUNet
from kdrt_export.components.t2i_adapter import ExportT2IAdapter
from tests.support.earlier_unet import UNetWithFreeUOfBatch
from tests.support.tiny_networks import controlnet, t2i_adapter, text_encoder, unet, vae

PRUNED: dict[str, dict[str, Any]] = {
    # Segmind's SSD-1B and Vega: a middle block without attention, transformers of their own depths.
    "of SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, [1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1], 1],
    },
    # KOALA-700M, BK-SDM-tiny: no middle block.
    "of KOALA": {"mid_block_type": None},
    "of uneven depth": {"layers_per_block": [1, 3, 2]},
}


def _exported(
    export: Callable[[UNet2DConditionModel], ExportComponent], kind: str, **changes: Any
) -> ExportComponent:
    return export(unet(kind, **changes))


def _controlnet(kind: str, **changes: Any) -> ExportComponent:
    return ExportControlNet(controlnet(kind, **changes))


_controlled = partial(ExportUNet, control=True)


def _perturbed(unet: UNet2DConditionModel) -> ExportComponent:
    return ExportPerturbedUNet(unet, self_attentions(unet, ["mid", "up.block_1", "down_blocks.1"]))


COMPONENTS: dict[str, Callable[[], ExportComponent]] = {
    **{
        f"unet {kind}": partial(_exported, ExportUNet, kind)
        for kind in ("sd", "sd2", "sdxl", "lcm")
    },
    "refiner unet": lambda: ExportUNet(
        unet("sdxl", projection_class_embeddings_input_dim=5 * 8 + 20), time_ids=5
    ),
    **{f"unet {kind} for PAG": partial(_exported, _perturbed, kind) for kind in ("sd", "sdxl")},
    "inpainting unet": lambda: ExportUNet(unet("sd", in_channels=9)),
    "unet with its deep feature": lambda: ExportUNet(unet("sd"), deep_feature=True),
    **{
        f"shallow unet {kind}": partial(_exported, ExportShallowUNet, kind)
        for kind in ("sd", "sdxl", "lcm")
    },
    "shallow unet with FreeU in it": lambda: ExportShallowUNet(
        unet(
            "sd",
            block_out_channels=(16, 32),
            attention_head_dim=(2, 4),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    ),
    **{
        f"{what} {name}": partial(_exported, export, "sdxl", **changes)
        for what, export in (("unet", ExportUNet), ("shallow unet", ExportShallowUNet))
        for name, changes in PRUNED.items()
    },
    "unet with its prompt's width for each block": lambda: ExportUNet(
        unet("sd", cross_attention_dim=(24, 24, 24))
    ),
    **{
        f"unet with control {kind}": partial(_exported, _controlled, kind)
        for kind in ("sd", "sdxl", "lcm")
    },
    "unet with control of KOALA": lambda: _controlled(unet("sdxl", mid_block_type=None)),
    "unet with control without a middle block": lambda: _controlled(
        unet("sd", mid_block_type=None)
    ),
    **{f"controlnet {kind}": partial(_controlnet, kind) for kind in ("sd", "sd2", "sdxl")},
    "controlnet that pools": partial(_controlnet, "sd", global_pool_conditions=True),
    "controlnet without attention": partial(
        _controlnet,
        "sdxl",
        down_block_types=("DownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
    ),
    "controlnet of reversed colours": partial(
        _controlnet, "sd", controlnet_conditioning_channel_order="bgr"
    ),
    "control hint": lambda: ExportControlHint(controlnet("sd")),
    "control hint of reversed colours": lambda: ExportControlHint(
        controlnet("sd", controlnet_conditioning_channel_order="bgr")
    ),
    "t2i-adapter": lambda: ExportT2IAdapter(t2i_adapter("sd", in_channels=1), scale=2),
    "t2i-adapter light": lambda: ExportT2IAdapter(
        t2i_adapter("sd", adapter_type="light_adapter"), scale=2
    ),
    "t2i-adapter sdxl": lambda: ExportT2IAdapter(t2i_adapter("sdxl"), scale=2),
    "unet that upcasts attention": lambda: ExportUNet(unet("sd", upcast_attention=True)),
    "unet with one FreeU for a batch": lambda: UNetWithFreeUOfBatch(unet("sd")),
    "unet without fused qkv": lambda: ExportUNet(unet("sdxl"), fuse_qkv=False),
    "text encoder": lambda: ExportTextEncoder(text_encoder(), normalize=True),
    "text encoder 2": lambda: ExportTextEncoder(text_encoder(projection=True), normalize=False),
    "vae decoder": lambda: ExportVaeDecoder(vae()),
    "vae decoder with statistics": lambda: ExportVaeDecoder(
        vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 0.8])
    ),
    "vae encoder": lambda: ExportVaeEncoder(vae()),
}
