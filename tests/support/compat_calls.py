"""Calls of the drop-in classes in short words."""

from __future__ import annotations

from typing import Any

import torch

SAMPLERS = (
    "euler",
    "lms",
    "heun",
    "dpm_2",
    "dpmpp_2m",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
)
RED, BLUE = "a small red circle", "blue"


def ours(pipe: Any, prompts: list[str] | None, sampler: str, **options: Any) -> torch.Tensor:
    pipe.set_scheduler(f"sample_{sampler}")
    names = {
        "karras": "use_karras_sigmas",
        "negatives": "negative_prompt",
        "per_prompt": "num_images_per_prompt",
        "noise_seed": "noise_sampler_seed",
    }
    arguments = {"height": 32, "width": 32} | {names.get(k, k): v for k, v in options.items()}
    return pipe(
        prompts, num_inference_steps=3, guidance_scale=5.0, output_type="latent", **arguments
    ).images


def relative(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


def seeded(count: int | None = None) -> Any:
    if count is None:
        return torch.Generator().manual_seed(7)
    return [torch.Generator().manual_seed(7 + i) for i in range(count)]
