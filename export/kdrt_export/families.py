"""The model families kdrt knows: hub ids behind the short names, and their architectures.

The architectures serve ``--random-weights``: benchmarks and tests at real sizes without a
download. They are the configurations the models were published with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["sd", "sdxl"]

DEFAULT_GUIDANCE: dict[Family, float] = {"sd": 7.5, "sdxl": 5.0}


@dataclass(frozen=True)
class Architecture:
    """Configurations of a family's networks, as diffusers and transformers take them. SDXL's
    refiner has its second text encoder alone."""

    family: Family
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]
    is_refiner: bool = False
    scheduler: dict[str, Any] = field(default_factory=dict)

    @property
    def zeros_for_empty_negative(self) -> bool:
        """Whether an empty negative prompt is zeros: SDXL was trained so, its refiner was not."""
        return self.family == "sdxl" and not self.is_refiner


@dataclass(frozen=True)
class KnownModel:
    """A well-known model: its hub id, architecture, and guidance scale where it has its own."""

    repo: str
    architecture: Architecture
    guidance_scale: float | None = None


_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_CROSS_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_CROSS_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
}
_OPENCLIP_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
_OPENCLIP_BIGG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
_SD_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": _CROSS_DOWN,
    "up_block_types": _CROSS_UP,
    "layers_per_block": 2,
}

SD15 = Architecture(
    family="sd",
    unet={**_SD_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae=_VAE,
    text_encoders=(_CLIP_L,),
    scheduler=_SCHEDULER,
)
SD20 = Architecture(
    family="sd",
    unet={
        **_SD_UNET,
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    vae=_VAE,
    text_encoders=(_OPENCLIP_H,),
    scheduler=_SCHEDULER,
)
SD21 = Architecture(
    family="sd",
    unet={**SD20.unet, "sample_size": 96},
    vae={**_VAE, "sample_size": 768},
    text_encoders=(_OPENCLIP_H,),
    scheduler={**_SCHEDULER, "prediction_type": "v_prediction"},
)
SDXL = Architecture(
    family="sdxl",
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders=(_CLIP_L, _OPENCLIP_BIGG),
    scheduler={**_SCHEDULER, "timestep_spacing": "leading", "steps_offset": 1},
)
SDXL_REFINER = Architecture(
    family="sdxl",
    unet={
        **SDXL.unet,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
    vae=SDXL.vae,
    text_encoders=(_OPENCLIP_BIGG,),
    is_refiner=True,
    scheduler=SDXL.scheduler,
)
SDXL_TURBO = Architecture(
    family="sdxl",
    unet={**SDXL.unet, "sample_size": 64},
    vae=SDXL.vae,
    text_encoders=SDXL.text_encoders,
    scheduler={**_SCHEDULER, "timestep_spacing": "trailing"},
)

KNOWN_MODELS: dict[str, KnownModel] = {
    "sdxl": KnownModel("stabilityai/stable-diffusion-xl-base-1.0", SDXL),
    "sdxl-refiner": KnownModel("stabilityai/stable-diffusion-xl-refiner-1.0", SDXL_REFINER),
    "sdxl-turbo": KnownModel("stabilityai/sdxl-turbo", SDXL_TURBO, guidance_scale=0.0),
    "sd15": KnownModel("stable-diffusion-v1-5/stable-diffusion-v1-5", SD15),
    "sd21": KnownModel("stabilityai/stable-diffusion-2-1", SD21),
}
