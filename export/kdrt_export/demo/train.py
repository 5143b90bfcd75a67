"""Train the demo model: a small Stable Diffusion XL that draws coloured shapes.

    python -m kdrt_export.demo.train OUT [--seed 0]

Everything is made here: images and captions (``kdrt_export.demo.scenes``), BPE tokenizers,
the autoencoder, then the UNet together with both text encoders. The result is an ordinary
diffusers folder that ``StableDiffusionXLPipeline.from_pretrained`` loads. About an hour and a
half on two CPU cores; the same seed and thread count give the same weights.

Method: an autoencoder with L1 + L2 loss, its latents standardised per channel by folding the
affine map into its quantising convolutions; a UNet trained on the noise-prediction loss with
min-SNR weights (Hang et al. 2023, arXiv:2303.09556, gamma 5), captions dropped one time in
eight for classifier-free guidance, and an exponential moving average of the weights.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLPipeline,
)
from transformers import (
    CLIPTokenizer,
)

from kdrt_export.demo.networks import (
    SCALING_FACTOR,
    Denoiser,
    load_denoiser,
    make_scheduler,
    make_text_encoders,
    make_unet,
    make_vae,
    train_tokenizers,
)
from kdrt_export.demo.scenes import Scene, caption, draw, random_scene

SIZES = ((64, 64), (96, 64), (64, 96))
"""(width, height) of the training images: mostly square, some wide, some tall."""


@dataclass
class Recipe:
    """Everything that decides the outcome, written beside the weights."""

    seed: int = 0
    images: int = 24_000
    vae_steps: int = 1_800
    vae_batch: int = 16
    vae_lr: float = 2e-3
    unet_steps: int = 8_700
    unet_batch: int = 32
    unet_lr: float = 1.2e-3
    threads: int = 2


class Progress:
    """Mean loss every ``every`` steps, printed and kept for the summary."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every
        self.start = time.perf_counter()
        self.window: list[float] = []
        self.curve: list[tuple[int, float]] = []

    def add(self, step: int, loss: float) -> None:
        self.window.append(loss)
        if (step + 1) % self.every == 0:
            mean = float(np.mean(self.window))
            self.window.clear()
            self.curve.append((step + 1, round(mean, 5)))
            seconds = time.perf_counter() - self.start
            print(f"{self.name} {step + 1}: loss {mean:.4f}, {seconds:.0f} s", flush=True)


def draw_images(rng: np.random.Generator, recipe: Recipe) -> list[tuple[list[Scene], torch.Tensor]]:
    """For each size of ``SIZES`` its scenes and images, uint8 [N, 3, H, W]."""
    sets = []
    for index, (width, height) in enumerate(SIZES):
        count = recipe.images if index == 0 else recipe.images // 6
        scenes = [random_scene(rng) for _ in range(count)]
        pixels = np.stack([np.asarray(draw(scene, width, height)) for scene in scenes])
        sets.append((scenes, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()))
    return sets


def to_model_range(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def cosine(step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.495 * (1 + float(np.cos(np.pi * (step - warmup) / (total - warmup))))


def optimizer_for(
    parameters: list[torch.nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(
        parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine(s, steps, 100))
    return optimizer, schedule


def train_vae(vae: AutoencoderKL, images: torch.Tensor, recipe: Recipe) -> Progress:
    rng = np.random.default_rng(recipe.seed + 1)
    torch.manual_seed(recipe.seed + 1)
    parameters = list(vae.parameters())
    optimizer, schedule = optimizer_for(parameters, recipe.vae_lr, recipe.vae_steps)
    progress = Progress("vae", 100)
    for step in range(recipe.vae_steps):
        x = to_model_range(images[rng.integers(len(images), size=recipe.vae_batch)])
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.square().mean() + 0.3 * error.abs().mean() + 2e-3 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.add(step, float(loss.detach()))
    return progress


@torch.inference_mode()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Posterior means of uint8 images, before the scaling factor."""
    batches = pixels.split(256)
    return torch.cat([vae.encode(to_model_range(batch)).latent_dist.mean for batch in batches])


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Make every latent channel zero-mean with standard deviation 1 / scaling_factor, exactly
    and inside the existing weights: the affine map goes into ``quant_conv``, its inverse into
    ``post_quant_conv`` (both 1×1 convolutions without padding)."""
    latents = encode(vae, pixels)
    mean = latents.mean((0, 2, 3))
    gain = 1 / (latents.std((0, 2, 3)) * SCALING_FACTOR)
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= gain[None, :, None, None]
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()


def training_batches(
    scenes: list[list[Scene]], latents: list[torch.Tensor], recipe: Recipe
) -> Iterator[tuple[torch.Tensor, list[str], torch.Tensor]]:
    """Endless (latents [B,4,h,w], captions, time_ids [B,6]); one image size a batch."""
    rng = np.random.default_rng(recipe.seed + 2)
    while True:
        bucket = int(rng.choice(len(SIZES), p=[0.8, 0.1, 0.1]))
        batch = recipe.unet_batch if bucket == 0 else recipe.unet_batch * 2 // 3
        chosen = rng.integers(len(scenes[bucket]), size=batch)
        captions = [caption(scenes[bucket][i], rng) for i in chosen]
        width, height = SIZES[bucket]
        time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        time_ids = time_ids.repeat(batch, 1)
        # Now and then another original size, so that the model does not depend on it.
        other = torch.from_numpy(rng.random(batch) < 0.15)
        sizes = torch.from_numpy(rng.integers(48, 257, size=(batch, 2))).float()
        time_ids[other, :2] = sizes[other]
        yield latents[bucket][torch.from_numpy(chosen)], captions, time_ids


def train_denoiser(
    model: Denoiser,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    batches: Iterator[tuple[torch.Tensor, list[str], torch.Tensor]],
    recipe: Recipe,
    snapshot: Callable[[Denoiser], None],
) -> tuple[Denoiser, Progress]:
    """Train, and return the averaged model. ``snapshot`` gets a copy of it now and then, so
    that an interrupted run leaves something usable."""
    rng = np.random.default_rng(recipe.seed + 3)
    torch.manual_seed(recipe.seed + 3)
    alphas = make_scheduler().alphas_cumprod
    parameters = list(model.parameters())
    optimizer, schedule = optimizer_for(parameters, recipe.unet_lr, recipe.unet_steps)
    average = copy.deepcopy(model).requires_grad_(False)
    progress = Progress("unet", 100)
    for step in range(recipe.unet_steps):
        x0, captions, time_ids = next(batches)
        dropped = rng.random(len(captions))
        # SDXL's null prompt is zeros; an empty prompt is encoded. Both occur at inference.
        keep = torch.from_numpy(dropped >= 0.08).float()
        captions = ["" if d < 0.12 else text for text, d in zip(captions, dropped, strict=True)]
        ids, ids_2 = (
            tokenizer(
                captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in tokenizers
        )
        timestep = torch.from_numpy(rng.integers(len(alphas), size=len(captions)))
        alpha = alphas[timestep][:, None, None, None]
        noise = torch.randn_like(x0)
        predicted = model(
            alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, timestep, ids, ids_2, keep, time_ids
        )
        snr = (alpha / (1 - alpha)).flatten()
        weight = snr.clamp(max=5) / snr
        loss = (weight * F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 1 - decay)
        progress.add(step, float(loss.detach()))
        if (step + 1) % 500 == 0:
            snapshot(copy.deepcopy(average))
    return average, progress


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write the diffusers pipeline to.")],
    seed: int = 0,
    vae_steps: int = Recipe.vae_steps,
    unet_steps: int = Recipe.unet_steps,
    images: int = Recipe.images,
    threads: int = Recipe.threads,
    unet_lr: float = Recipe.unet_lr,
    vae: Annotated[
        Path | None, typer.Option(help="Folder of an autoencoder trained before, to reuse.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A model trained before, to train further.")
    ] = None,
) -> None:
    """Train the demo model and save it as a float16 diffusers folder."""
    recipe = Recipe(
        seed=seed,
        vae_steps=vae_steps,
        unet_steps=unet_steps,
        unet_lr=unet_lr,
        images=images,
        threads=threads,
    )
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    start = time.perf_counter()

    if resume is None:
        tokenizers = train_tokenizers(rng)
    else:
        tokenizers = tuple(
            CLIPTokenizer.from_pretrained(resume / name) for name in ("tokenizer", "tokenizer_2")
        )
        vae = resume / "vae"
    sets = draw_images(rng, recipe)
    print(f"images drawn, {time.perf_counter() - start:.0f} s", flush=True)

    if vae is None:
        autoencoder = make_vae()
        vae_curve = train_vae(autoencoder, sets[0][1], recipe).curve
        autoencoder.requires_grad_(False).eval()
        standardise_latents(autoencoder, sets[0][1][:4096])
        autoencoder.half().save_pretrained(out / "vae")
    else:
        vae_curve = []
    autoencoder = AutoencoderKL.from_pretrained(vae or out / "vae", torch_dtype=torch.float32)
    autoencoder.register_to_config(_name_or_path="")  # a path of this machine otherwise
    autoencoder.requires_grad_(False).eval()
    latents = [encode(autoencoder, pixels).clone() * SCALING_FACTOR for _, pixels in sets]
    autoencoder.half()
    print(f"latents: standard deviation {latents[0].std():.3f}", flush=True)

    def save(trained: Denoiser) -> None:
        trained.half()
        StableDiffusionXLPipeline(
            vae=autoencoder,
            text_encoder=trained.text_encoder,
            text_encoder_2=trained.text_encoder_2,
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=trained.unet,
            scheduler=make_scheduler(),
        ).save_pretrained(out)

    if resume is None:
        model = Denoiser(make_unet(), make_text_encoders(tokenizers[0]))
    else:
        model = load_denoiser(resume)
    batches = training_batches([scenes for scenes, _ in sets], latents, recipe)
    average, unet_progress = train_denoiser(model, tokenizers, batches, recipe, save)
    save(average)
    summary = {
        "recipe": asdict(recipe),
        "seconds": round(time.perf_counter() - start),
        "parameters": {
            "vae": sum(p.numel() for p in autoencoder.parameters()),
            "unet": sum(p.numel() for p in average.unet.parameters()),
            "text_encoder": sum(p.numel() for p in average.text_encoder.parameters()),
            "text_encoder_2": sum(p.numel() for p in average.text_encoder_2.parameters()),
        },
        "loss": {"vae": vae_curve, "unet": unet_progress.curve},
    }
    (out / "training.json").write_text(json.dumps(summary) + "\n")


if __name__ == "__main__":
    typer.run(main)
