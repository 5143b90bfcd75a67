"""The networks of the demo model: a small Stable Diffusion XL, as diffusers builds it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from kdrt_export.demo.scenes import caption, random_scene

SCALING_FACTOR = 0.5
TEXT_WIDTH = 64
MAX_LENGTH = 32
"""Tokens of a prompt: every caption fits, and short prompts train faster than CLIP's 77."""


def train_tokenizers(rng: np.random.Generator) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Two CLIP tokenizers over one byte-pair vocabulary learnt from captions. As in SDXL they
    differ in padding alone: end-of-text for the first, ``!`` for the second."""
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    captions = [caption(random_scene(rng), rng) for _ in range(4_000)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(raw.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters.sort(key=lambda letter: (letter != "!", letter))  # "!" pads as id 0, as in SDXL
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return tuple(
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=MAX_LENGTH)
        for pad in ("<|endoftext|>", "!")
    )


def make_text_encoders(
    tokenizer: CLIPTokenizer,
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Three layers each: SDXL reads the last but one, so two of them shape the image."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": TEXT_WIDTH,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    first = CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **common))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", **common))
    for encoder in (first, second.text_model):
        # CLIP's own 0.02 suits its contrastive training; cross-attention reads these states
        # without a norm and would hardly see them at first.
        torch.nn.init.normal_(encoder.embeddings.token_embedding.weight, std=0.6)
        torch.nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.2)
    return first, second


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + TEXT_WIDTH,
        norm_num_groups=16,
    )


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet that begins as the UNet's encoder, with zero convolutions behind it.

    Without the attention and the second residual block of the UNet's middle: as in the small
    ControlNets for SDXL, the middle block has no transformer. That keeps two thirds of the
    parameters of a full copy.
    """
    config = unet.config
    controlnet = ControlNetModel(
        in_channels=config.in_channels,
        conditioning_channels=3,
        conditioning_embedding_out_channels=(16, 32, 32),
        down_block_types=config.down_block_types,
        mid_block_type="UNetMidBlock2D",
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=config.transformer_layers_per_block,
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        addition_embed_type=config.addition_embed_type,
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=config.projection_class_embeddings_input_dim,
        norm_num_groups=config.norm_num_groups,
    )
    encoder = {
        name: tensor
        for name, tensor in unet.state_dict().items()
        if name in controlnet.state_dict()
    }
    controlnet.load_state_dict(encoder, strict=False)
    return controlnet


def make_scheduler() -> EulerDiscreteScheduler:
    """The scheduler configuration of SDXL base."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


class Denoiser(torch.nn.Module):
    """The UNet with both text encoders, trained as one."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder, self.text_encoder_2 = encoders

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        ids: torch.Tensor,
        ids_2: torch.Tensor,
        keep: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        context, added = self.encode_prompts(ids, ids_2, keep, time_ids)
        return self.unet(sample, timestep, context, added_cond_kwargs=added).sample

    def encode_prompts(
        self, ids: torch.Tensor, ids_2: torch.Tensor, keep: torch.Tensor, time_ids: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the UNet and a ControlNet are told: the text's states [B, L, C] and the added
        conditions. Rows where ``keep`` is 0 get SDXL's null prompt, zeros."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds * keep[:, None], "time_ids": time_ids}
        return context * keep[:, None, None], added


def load_denoiser(folder: Path) -> Denoiser:
    """The trained networks of a saved pipeline, in float32."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet.register_to_config(_name_or_path="")
    encoders = (
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32),
    )
    return Denoiser(unet, encoders).train()
