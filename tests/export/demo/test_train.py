"""The training script of the demo model, with hardly any steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from kdrt_export.demo import train
from kdrt_export.demo.networks import MAX_LENGTH, SCALING_FACTOR, make_vae, train_tokenizers
from kdrt_export.demo.scenes import caption, random_scene
from kdrt_export.demo.train import encode, standardise_latents


def test_a_short_run_gives_an_ordinary_pipeline(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    sizes: dict[str, Any] = {"vae_steps": 2, "unet_steps": 2, "images": 48, "threads": threads}
    train.main(tmp_path / "first", **sizes)
    train.main(tmp_path / "again", **sizes)
    train.main(tmp_path / "further", **sizes, resume=tmp_path / "first", seed=1)
    first, again, further = (
        (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("first", "again", "further")
    )
    assert first == again
    assert first != further
    for config in (tmp_path / "further").rglob("*.json"):
        assert str(tmp_path) not in config.read_text()

    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "further", torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red circle", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    summary = json.loads((tmp_path / "first" / "training.json").read_text())
    assert summary["recipe"]["unet_steps"] == 2
    assert summary["parameters"]["unet"] > 4e6


def test_every_caption_fits_into_the_prompt() -> None:
    rng = np.random.default_rng(0)
    tokenizer, _ = train_tokenizers(rng)
    for _ in range(500):
        ids = tokenizer(caption(random_scene(rng, held_out=None), rng)).input_ids
        assert len(ids) <= MAX_LENGTH


def test_standardising_changes_the_latents_and_not_the_images() -> None:
    torch.manual_seed(0)
    vae = make_vae().requires_grad_(False).eval()
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    before = vae.decode(encode(vae, pixels)).sample
    spread = vae.encode(train.to_model_range(pixels)).latent_dist.std
    standardise_latents(vae, pixels)
    latents = encode(vae, pixels)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.full((4,), 1 / SCALING_FACTOR))
    torch.testing.assert_close(vae.decode(latents).sample, before, rtol=0, atol=1e-4)
    scaled = vae.encode(train.to_model_range(pixels)).latent_dist.std / spread
    torch.testing.assert_close(scaled, scaled[:1, :, :1, :1].expand_as(scaled), rtol=1e-3, atol=0)
