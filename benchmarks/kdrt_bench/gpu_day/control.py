"""A ControlNet of Stable Diffusion XL's size with random weights, in float16: a step beside
diffusers' own pipeline, eager, on the same networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLControlNetPipeline

import kdrt
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt_bench.gpu_day.setting import Measurement, Setting
from kdrt_bench.gpu_day.sizes import Image, compared, image_of, model
from kdrt_bench.gpu_day.unexported import Unexported, outlines


def measurements(setting: Setting) -> Iterator[Measurement]:
    """A row for each graph level."""
    made = model("sdxl", setting, controlled=True)
    theirs = image_of_diffusers(made)
    asked = kdrt.ControlImage(outlines())
    for level in CUDA_GRAPH_LEVELS:
        ours = image_of(made.pipeline(level), control=asked)
        yield f"kdrt {level}, diffusers' pipeline", partial(compared, ours, theirs, setting)


def image_of_diffusers(made: Unexported) -> Image:
    """As the pipeline of diffusers makes it, of embeddings as wide as the text encoders', and with
    guidance, as ours."""
    unet: Any = made.plain.unet
    latents = made.bundle.manifest.latents
    scales = latents.scale.bit_length()
    pipeline = StableDiffusionXLControlNetPipeline(
        # It asks the VAE for the size of its latents, and decodes nothing.
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * scales,
            up_block_types=["UpDecoderBlock2D"] * scales,
            block_out_channels=[4] * scales,
            norm_num_groups=1,
        ).to(unet.device, unet.dtype),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        controlnet=made.controlnet,
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    shapes = {each.name: each.shape for each in made.engines["unet"].spec.inputs}
    length = made.bundle.manifest.text_encoders[0].max_length
    width, pooled = (int(shapes[name][-1]) for name in ("encoder_hidden_states", "text_embeds"))
    rows = torch.zeros(1, length, width, device=unet.device, dtype=unet.dtype)
    words = torch.zeros(1, pooled, device=unet.device, dtype=unet.dtype)

    def image(steps: int) -> object:
        return pipeline(
            prompt_embeds=rows,
            negative_prompt_embeds=rows,
            pooled_prompt_embeds=words,
            negative_pooled_prompt_embeds=words,
            image=outlines()[None],
            width=latents.default_width,
            height=latents.default_height,
            num_inference_steps=steps,
            guidance_scale=made.bundle.manifest.default_guidance_scale,
            output_type="latent",
        )

    return image
