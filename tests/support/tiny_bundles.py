"""Tiny models as diffusers folders and as bundles, and one image made by both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrt.pipeline.pipeline import Pipeline
from kdrt_export.stage import export
from tests.support.lora_files import pipeline

PROMPT, NEGATIVE = "a red circle on a blue background", "a green star"
STEPS, HEIGHT, WIDTH = 3, 32, 48


@dataclass(frozen=True)
class TinyModel:
    family: str
    folder: Path
    bundle: Path

    @classmethod
    def make(cls, family: str, home: Path, **options: Any) -> TinyModel:
        made = cls.made(family, home)
        pipeline(family).save_pretrained(made.folder)
        export(str(made.folder), made.bundle, **options)
        return made

    @classmethod
    def made(cls, family: str, home: Path) -> TinyModel:
        """What :meth:`make` left in a folder."""
        return cls(family, home / family, home / f"{family}-bundle")

    def diffusers(self) -> Any:
        """diffusers' own pipeline of this model, without any adapter."""
        pipe = pipeline(self.family)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def latents() -> Tensor:
    return torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(5))


def by_diffusers(pipe: Any, **options: Any) -> Tensor:
    """Euler on the scheduler's grid, as latents."""
    return pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        output_type="latent",
        **{"height": HEIGHT, "width": WIDTH, "latents": latents(), **options},
    ).images


def by_kdrt(pipe: Pipeline, **options: Any) -> Tensor:
    """The same image by kdrt."""
    images = pipe(
        PROMPT,
        NEGATIVE,
        steps=STEPS,
        sampler="euler",
        schedule="scheduler",
        latents=latents(),
        height=HEIGHT,
        width=WIDTH,
        **{"guidance_scale": 7.5 if pipe.bundle.manifest.family == "sd" else 5.0, **options},
        output_type="latent",
    ).images
    assert isinstance(images, Tensor)
    return images
