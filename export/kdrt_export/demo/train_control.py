"""Train the demo model's ControlNet: outlines of shapes → images with the shapes there.

    python -m kdrt_export.demo.train_control OUT [--seed 0]

The demo model itself stays as it is. Scenes give an image, a caption and the outlines
(``kdrt_export.demo.outlines``); the ControlNet learns the demo model's own task, predicting the
noise, and is the only network that changes. The result is an ordinary diffusers folder that
``ControlNetModel.from_pretrained`` loads. About half an hour on one CPU core.

Every step draws from a random stream of its own, so an interrupted run continues when started
again, and ends at the weights of one that ran through (same seed and thread count).

Method: Zhang et al. 2023, arXiv:2302.05543. The ControlNet begins as a copy of the UNet's encoder
with zero convolutions; captions are dropped often enough that it reads the outlines alone too.
Loss, weights by signal-to-noise ratio and averaging are those of ``kdrt_export.demo.train``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTokenizer

from kdrt_export.demo.networks import (
    SCALING_FACTOR,
    Denoiser,
    load_denoiser,
    make_controlnet,
    make_scheduler,
)
from kdrt_export.demo.outlines import draw_outlines
from kdrt_export.demo.scenes import Scene, caption
from kdrt_export.demo.train import SIZES, Progress, draw_images, encode, optimizer_for
from kdrt_export.demo.train import Recipe as ModelRecipe

MODEL = Path(__file__).parent / "model"
CONTROL = Path(__file__).parent / "control"
CHECKPOINT = "checkpoint.pt"


@dataclass
class Recipe:
    """Everything that decides the outcome, written beside the weights."""

    seed: int = 0
    images: int = 12_000
    steps: int = 2_400
    batch: int = 24
    lr: float = 1e-3
    threads: int = 1


class Batch(NamedTuple):
    """One step's data, all images of one size."""

    latents: torch.Tensor
    """float32 [B, 4, h, w], scaled."""
    outlines: torch.Tensor
    """float32 [B, 3, 4h, 4w] in [0, 1]."""
    captions: list[str]
    keep: torch.Tensor
    """float32 [B], 0 where the null prompt stands in for the caption."""
    time_ids: torch.Tensor
    """float32 [B, 6]."""
    timesteps: torch.Tensor
    """int64 [B]."""
    noise: torch.Tensor
    """float32 like the latents."""


class Bucket(NamedTuple):
    """All images of one size."""

    scenes: list[Scene]
    latents: torch.Tensor
    """float32 [N, 4, h, w], scaled."""
    outlines: torch.Tensor
    """bool [N, H, W]."""


def make_buckets(recipe: Recipe) -> list[Bucket]:
    """Draw the images of every size of ``SIZES`` and encode them with the demo model's VAE."""
    vae = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32)
    vae.requires_grad_(False).eval()
    rng = np.random.default_rng(recipe.seed)
    sets = draw_images(rng, ModelRecipe(images=recipe.images))
    buckets = []
    for (scenes, pixels), (width, height) in zip(sets, SIZES, strict=True):
        lines = np.stack(
            [np.asarray(draw_outlines(scene, width, height))[..., 0] > 0 for scene in scenes]
        )
        latents = encode(vae, pixels).clone() * SCALING_FACTOR
        buckets.append(Bucket(scenes, latents, torch.from_numpy(lines)))
    return buckets


def training_batches(buckets: list[Bucket], recipe: Recipe, first: int = 0) -> Iterator[Batch]:
    """The batches of step ``first`` and after. A step's batch depends on the seed and its number
    alone."""
    for step in range(first, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        index = int(rng.choice(len(SIZES), p=[0.8, 0.1, 0.1]))
        bucket, (width, height) = buckets[index], SIZES[index]
        chosen = rng.integers(len(bucket.scenes), size=recipe.batch)
        latents = bucket.latents[torch.from_numpy(chosen)]
        outlines = bucket.outlines[torch.from_numpy(chosen)][:, None].float()
        # Lines come thicker too: other edge detectors and pens than the one of the training.
        thick = torch.from_numpy(rng.random(recipe.batch) < 0.25)
        outlines[thick] = F.max_pool2d(outlines[thick], 3, stride=1, padding=1)
        dropped = rng.random(recipe.batch)
        captions = [caption(bucket.scenes[i], rng) for i in chosen]
        yield Batch(
            latents=latents,
            outlines=outlines.expand(-1, 3, -1, -1),
            captions=["" if d < 0.2 else text for text, d in zip(captions, dropped, strict=True)],
            keep=torch.from_numpy(dropped >= 0.1).float(),
            time_ids=torch.tensor([height, width, 0, 0, height, width])
            .float()
            .repeat(recipe.batch, 1),
            timesteps=torch.from_numpy(rng.integers(1000, size=recipe.batch)),
            noise=torch.randn(latents.shape, generator=generator),
        )


def predict_noise(
    model: Denoiser,
    controlnet: ControlNetModel,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    prompts: tuple[torch.Tensor, dict[str, torch.Tensor]],
    outlines: torch.Tensor,
) -> torch.Tensor:
    """The UNet's prediction with the ControlNet's residuals."""
    context, added = prompts
    down, middle = controlnet(
        noisy,
        timesteps,
        context,
        controlnet_cond=outlines,
        added_cond_kwargs=added,
        return_dict=False,
    )
    return model.unet(
        noisy,
        timesteps,
        context,
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample


def train_control(
    model: Denoiser,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    buckets: list[Bucket],
    recipe: Recipe,
    out: Path,
    *,
    checkpoint_every: int = 250,
) -> tuple[ControlNetModel, Progress]:
    """Train, and return the averaged ControlNet. Continues from ``out``'s checkpoint, if any."""
    torch.manual_seed(recipe.seed)
    controlnet = make_controlnet(model.unet).train()
    average = copy.deepcopy(controlnet).requires_grad_(False)
    parameters = list(controlnet.parameters())
    optimizer, schedule = optimizer_for(parameters, recipe.lr, recipe.steps)
    progress = Progress("control", 100)
    alphas = make_scheduler().alphas_cumprod
    states: dict[str, Any] = {
        "controlnet": controlnet,
        "average": average,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    first = 0
    if (out / CHECKPOINT).exists():
        saved = torch.load(out / CHECKPOINT, weights_only=True)
        if saved["recipe"] != asdict(recipe):
            raise typer.BadParameter(
                f"{out / CHECKPOINT} is of another recipe ({saved['recipe']}); "
                "continue with that one, or train into another folder"
            )
        for name, part in states.items():
            part.load_state_dict(saved[name])
        first = saved["step"]
        progress.curve = [tuple(point) for point in saved["curve"]]
        print(f"continued after step {first}", flush=True)

    for step, batch in enumerate(training_batches(buckets, recipe, first), first):
        ids, ids_2 = (
            tokenizer(
                batch.captions, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in tokenizers
        )
        with torch.no_grad():
            prompts = model.encode_prompts(ids, ids_2, batch.keep, batch.time_ids)
        alpha = alphas[batch.timesteps][:, None, None, None]
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
        predicted = predict_noise(
            model, controlnet, noisy, batch.timesteps, prompts, batch.outlines
        )
        snr = (alpha / (1 - alpha)).flatten()
        error = F.mse_loss(predicted, batch.noise, reduction="none").mean((1, 2, 3))
        loss = (snr.clamp(max=5) / snr * error).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], parameters, 1 - decay)
        progress.add(step, float(loss.detach()))
        if (step + 1) % checkpoint_every == 0:
            numbers = {"recipe": asdict(recipe), "step": step + 1, "curve": progress.curve}
            torch.save(
                {name: part.state_dict() for name, part in states.items()} | numbers,
                out / "checkpoint.tmp",
            )
            (out / "checkpoint.tmp").replace(out / CHECKPOINT)
    return average, progress


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write the ControlNet to.")],
    seed: int = Recipe.seed,
    steps: int = Recipe.steps,
    images: int = Recipe.images,
    batch: int = Recipe.batch,
    lr: float = Recipe.lr,
    threads: int = Recipe.threads,
    checkpoint_every: int = 250,
) -> None:
    """Train the demo model's ControlNet and save it as a float16 diffusers folder."""
    recipe = Recipe(seed=seed, images=images, steps=steps, batch=batch, lr=lr, threads=threads)
    torch.set_num_threads(recipe.threads)
    out.mkdir(parents=True, exist_ok=True)
    model = load_denoiser(MODEL).requires_grad_(False).eval()
    tokenizers = (
        CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        CLIPTokenizer.from_pretrained(MODEL / "tokenizer_2"),
    )
    buckets = make_buckets(recipe)
    print(f"{sum(len(bucket.scenes) for bucket in buckets)} images drawn", flush=True)
    average, progress = train_control(
        model, tokenizers, buckets, recipe, out, checkpoint_every=checkpoint_every
    )
    average.half().save_pretrained(out)
    summary = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in average.parameters()),
        "loss": progress.curve,
    }
    (out / "training.json").write_text(json.dumps(summary) + "\n")


if __name__ == "__main__":
    typer.run(main)
