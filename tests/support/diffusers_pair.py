"""One tiny random model as diffusers' own pipeline and as kdrt's, on the same networks.

The networks are wrapped here, not exported: what such a pair compares is everything around them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from kdrt.bundle import (
    Baked,
    Bundle,
    Component,
    Dtype,
    LatentFacts,
    Manifest,
    TensorInfo,
    TextEncoderFacts,
)
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts
from tests.support.tiny_model import (
    BOS,
    EOS,
    MAX_LENGTH,
    POOLED,
    WIDTHS,
    Family,
    clip_like_tokenizer,
    unet_spec,
)

STEPS = 4
HEIGHT, WIDTH = 32, 48
SCALE = 2
LAYERS = 3
POSITIVE = ["a red circle on a blue background", "a large green square and 2 yellow stars , a red"]
NEGATIVE = "small stars"


def euler(prediction_type: str) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,  # of no effect here, but diffusers warns of any other value
    )


def diffusers_pipeline(
    family: Family, prediction_type: str, scheduler: SchedulerMixin | None = None
) -> Any:
    context = sum(WIDTHS) if family == "sdxl" else WIDTHS[0]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
    }
    unet = UNet2DConditionModel(
        sample_size=WIDTH // SCALE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=context,
        **(added if family == "sdxl" else {}),
    )
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "scheduler": scheduler or euler(prediction_type),
        "tokenizer": transformers_tokenizer(EOS),
    }
    if family == "sd":
        parts["text_encoder"] = CLIPTextModel(text_config(WIDTHS[0]))
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **none)
    else:
        parts["text_encoder"] = CLIPTextModel(text_config(WIDTHS[0]))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(WIDTHS[1]))
        parts["tokenizer_2"] = transformers_tokenizer("!")
        pipeline = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def kdrt_pipeline(folder: Path, family: Family, theirs: Any) -> Pipeline:
    # The comparison ends in latents: the decoder is never run.
    networks: dict[str, nn.Module] = {"unet": UNet(theirs.unet), "vae_decoder": nn.Identity()}
    specs = {"unet": unet_spec(family=family), "vae_decoder": unet_spec(family="sd")}
    facts = []
    for suffix in ("", "_2")[: 1 if family == "sd" else 2]:
        model = getattr(theirs, f"text_encoder{suffix}")
        tokenizer = getattr(theirs, f"tokenizer{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        text = getattr(model, "text_model", model)
        table = text.embeddings.token_embedding.weight.detach().clone()
        save_file({"weight": table}, folder / f"table{suffix}.safetensors")
        width = table.shape[1]
        component = text_component(width, model.config.projection_dim if suffix else width)
        networks[f"text_encoder{suffix}"] = TextEncoder(model, normalize=family == "sd")
        specs[f"text_encoder{suffix}"] = component.spec()
        facts.append(
            TextEncoderFacts(
                component=f"text_encoder{suffix}",
                tokenizer=f"tokenizer{suffix}",
                token_embedding=f"table{suffix}.safetensors",
                max_length=MAX_LENGTH,
                hidden_size=width,
                layers=LAYERS,
                bos=tokenizer.bos_token_id,
                eos=tokenizer.eos_token_id,
                pooled_token=tokenizer.eos_token_id,
                pad=tokenizer.pad_token_id,
                layer=-2 if family == "sdxl" else -1,
                normalized=family == "sd",
            )
        )
    manifest = Manifest(
        family=family,
        name="tiny",
        source="tests",
        precision="fp32",
        components={},
        scheduler=scheduler_facts(json.loads(theirs.scheduler.to_json_string()), Silent()),
        text_encoders=tuple(facts),
        latents=LatentFacts(channels=4, scale=SCALE, default_height=HEIGHT, default_width=WIDTH),
        zeros_for_empty_negative=family == "sdxl",
        default_guidance_scale=5.0,
        baked=Baked(fused_qkv=False, freeu=False),
        tools={},
    )
    engines = {name: TorchEngine(network, specs[name]) for name, network in networks.items()}
    return Pipeline(Bundle(folder, manifest), engines)


class UNet(nn.Module):
    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, hidden: Tensor, *rest: Tensor) -> Tensor:
        added = None
        if len(rest) == 3:
            added = {"text_embeds": rest[0], "time_ids": rest[1]}
        return self.unet(sample, timestep, hidden, added_cond_kwargs=added).sample


class TextEncoder(nn.Module):
    def __init__(self, model: nn.Module, *, normalize: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.normalize = normalize

    def forward(self, inputs_embeds: Tensor, eos_index: Tensor) -> tuple[Tensor, Tensor]:
        text = getattr(self.model, "text_model", self.model)
        length = inputs_embeds.shape[1]
        hidden = inputs_embeds + text.embeddings.position_embedding.weight[:length]
        mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
        states = [hidden]
        for layer in text.encoder.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        pooled = text.final_layer_norm(hidden)[torch.arange(len(hidden)), eos_index]
        if hasattr(self.model, "text_projection"):
            pooled = self.model.text_projection(pooled)
        stacked = torch.stack(states, dim=1)
        return text.final_layer_norm(stacked) if self.normalize else stacked, pooled


def text_config(width: int) -> CLIPTextConfig:
    tokenizer = clip_like_tokenizer()
    return CLIPTextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=POOLED,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        initializer_range=0.3,
    )


def text_component(width: int, pooled: int) -> Component:
    def info(name: str, dtype: Dtype, *shape: int | str) -> TensorInfo:
        return TensorInfo(name=name, dtype=dtype, shape=shape)

    return Component(
        onnx="model.onnx",
        inputs=(
            info("inputs_embeds", "float32", "B", "L", width),
            info("eos_index", "int64", "B"),
        ),
        outputs=(
            info("hidden_states", "float32", "B", LAYERS + 1, "L", width),
            info("pooled", "float32", "B", pooled),
        ),
        parameters=0,
    )


def transformers_tokenizer(pad: str) -> CLIPTokenizer:
    model = json.loads(clip_like_tokenizer().to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=pad,
        model_max_length=MAX_LENGTH,
    )
