"""The whole runtime against diffusers' own pipelines, on tiny random networks.

With Euler on the scheduler's own grid both must end in the same latents. The networks are wrapped
here, not exported: what is compared is everything around them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
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

# The second prompt is too long on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 4
HEIGHT, WIDTH = 32, 48
SCALE = 2
LAYERS = 3
POSITIVE = ["a red circle on a blue background", "a large green square and 2 yellow stars , a red"]
NEGATIVE = "small stars"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_rescale", [0.0, 0.7])
def test_sdxl(tmp_path: Path, prediction_type: str, guidance_rescale: float) -> None:
    sizes = {"original_size": (80, 70), "crops_coords_top_left": (3, 5)}
    compare(
        tmp_path,
        "sdxl",
        prediction_type,
        guidance_rescale=guidance_rescale,
        prompt_2=["a star", "a small circle"],
        clip_skip=1,
        **sizes,
    )


@pytest.mark.parametrize("negative", [None, ""])
def test_sdxl_without_negative_prompt(tmp_path: Path, negative: str | None) -> None:
    compare(tmp_path, "sdxl", "epsilon", negative=negative)


def test_sdxl_negative_sizes(tmp_path: Path) -> None:
    # A batch of one: diffusers pairs them wrongly in larger batches.
    sizes = {"negative_original_size": (10, 20), "negative_target_size": (30, 40)}
    compare(tmp_path, "sdxl", "epsilon", prompts=POSITIVE[:1], **sizes)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sd(tmp_path: Path, prediction_type: str, guidance_scale: float) -> None:
    compare(tmp_path, "sd", prediction_type, guidance_scale=guidance_scale)


EDM: dict[str, SchedulerMixin] = {
    "Playground v2.5": EDMEulerScheduler(),
    "Playground v2.5, exponential": EDMEulerScheduler(sigma_schedule="exponential"),
    "CosXL": EDMEulerScheduler(
        sigma_max=120.0,
        sigma_data=1.0,
        prediction_type="v_prediction",
        sigma_schedule="exponential",
    ),
    "EDM velocity": EDMEulerScheduler(prediction_type="v_prediction", rho=5.0),
    "continuous velocity": EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=120.0,
        use_karras_sigmas=True,
        timestep_spacing="trailing",
        steps_offset=1,
    ),
    "second order": EDMDPMSolverMultistepScheduler(),
    "second order, velocity": EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", EDM)
def test_the_edm_formulation(tmp_path: Path, name: str) -> None:
    """The model's own grid, and every step on it."""
    sampler = "euler" if "order" not in name else "dpmpp_2m"
    compare(tmp_path, "sdxl", scheduler=EDM[name], sampler=sampler, own_grid=True, off=1e-5)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_sd_with_guidance_rescale(tmp_path: Path, prediction_type: str) -> None:
    """Of a model that predicts the denoised latents, it is those that diffusers rescales."""
    compare(tmp_path, "sd", prediction_type, guidance_rescale=0.7)


def compare(
    folder: Path,
    family: Family,
    prediction_type: str = "epsilon",
    *,
    scheduler: Any = None,
    sampler: str = "euler",
    own_grid: bool = False,
    off: float = 1e-4,
    prompts: list[str] = POSITIVE,
    negative: str | None = NEGATIVE,
    guidance_scale: float = 5.0,
    **arguments: Any,
) -> None:
    torch.manual_seed(0)
    theirs = diffusers_pipeline(family, prediction_type, scheduler)
    ours = kdrt_pipeline(folder, family, theirs)
    latents = torch.randn(len(prompts), 4, HEIGHT // SCALE, WIDTH // SCALE)
    common = {
        "height": HEIGHT,
        "width": WIDTH,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
        **arguments,
    }
    # diffusers wants as many negative prompts as prompts.
    their_negative = None if negative is None else [negative] * len(prompts)
    # diffusers begins EDM models at √(σ² + 1), k-diffusion and kdrt at σ.
    theirs.scheduler.set_timesteps(STEPS)
    begin = theirs.scheduler.sigmas[0] / theirs.scheduler.init_noise_sigma
    expected = theirs(
        prompts,
        negative_prompt=their_negative,
        num_inference_steps=STEPS,
        latents=latents * begin,
        **common,
    ).images
    sigmas = theirs.scheduler.sigmas.tolist()
    grid = {"schedule": "scheduler", "steps": STEPS} if own_grid else {"sigmas": sigmas}
    result = ours(prompts, negative, latents=latents, sampler=sampler, **grid, **common)
    torch.testing.assert_close(result.images, expected, rtol=off, atol=off)
    assert expected.std() > 0.1


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
        self.model = model
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
    def info(name: str, dtype: str, *shape: int | str) -> TensorInfo:
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
