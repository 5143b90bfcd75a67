"""The removed pipelines restated: networks as callables, driven by k-diffusion's own functions.

Checked once against the originals (``test_originals.py`` does it again where it can download
them): equal bit by bit.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler

from kdrt_export.sources import open_source
from tests.oracles import kdiffusion


@dataclass(frozen=True)
class Networks:
    """The untouched networks of a checkpoint, wanting gradients as freshly loaded ones do."""

    family: str
    unet: Any
    encoders: list[Any]
    tokenizers: list[Any]
    scheduler: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Path) -> Networks:
        source = open_source(str(checkpoint))
        indices = range(source.text_encoders)
        return cls(
            source.family,
            source.unet().requires_grad_(True),
            [source.text_encoder(i).requires_grad_(True) for i in indices],
            [source.tokenizer(i) for i in indices],
            {k: v for k, v in source.scheduler.items() if k != "skip_prk_steps"},
        )


@torch.no_grad()
def latents(
    networks: Networks,
    prompts: list[str],
    sampler: str,
    *,
    steps: int = 3,
    karras: bool = False,
    negatives: list[str] | None = None,
    clip_skip: int | None = None,
    per_prompt: int = 1,
    height: int = 32,
    width: int = 32,
    scale: int = 2,
    guidance: float = 5.0,
    generator: Any = None,
    noise_seed: int | list[int] | None = None,
    velocity: bool = False,
    negative_ids: list[int] | None = None,
) -> torch.Tensor:
    """Final latents of what the original would make of these arguments."""
    sampling, external = kdiffusion.load("sampling"), kdiffusion.load("external")
    keys = {k: v for k, v in networks.scheduler.items() if not k.startswith("_")}
    scheduler = LMSDiscreteScheduler(**keys)
    positive, pooled = _encode(networks, prompts, clip_skip)
    if negatives is None and networks.family == "sdxl":
        negative, negative_pooled = torch.zeros_like(positive), torch.zeros_like(pooled)
    else:
        negative, negative_pooled = _encode(networks, negatives or [""] * len(prompts), None)
    halves = [half.repeat_interleave(per_prompt, 0) for half in (negative, positive)]
    hidden = torch.cat(halves)
    images = len(halves[0])
    added = None
    if networks.family == "sdxl":
        pooled_halves = [p.repeat_interleave(per_prompt, 0) for p in (negative_pooled, pooled)]
        own = [height, width, 0, 0, height, width]
        ids = [negative_ids or own] * images + [own] * images
        added = {"text_embeds": torch.cat(pooled_halves), "time_ids": torch.tensor(ids).float()}

    class Model:
        alphas_cumprod = scheduler.alphas_cumprod

        def apply_model(self, x: Any, t: Any, *_: Any, **__: Any) -> Any:
            return networks.unet(x, t, encoder_hidden_states=hidden, added_cond_kwargs=added).sample

    kind = external.CompVisVDenoiser if velocity else external.CompVisDenoiser
    denoiser = kind(Model())
    if karras:
        ends = denoiser.sigmas[0].item(), denoiser.sigmas[-1].item()
        sigmas = sampling.get_sigmas_karras(steps, *ends)
    else:
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas
    shape = (4, height // scale, width // scale)
    if isinstance(generator, list):
        x = torch.cat([torch.randn((1, *shape), generator=each) for each in generator])
    else:
        x = torch.randn((images, *shape), generator=generator)
    x = x * sigmas[0]

    def guided(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        both = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), cond=hidden)
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    function = getattr(sampling, f"sample_{sampler}")
    options = {}
    if "noise_sampler" in inspect.signature(function).parameters:
        low = sigmas[sigmas > 0].min()
        options["noise_sampler"] = sampling.BrownianTreeNoiseSampler(
            x, low, sigmas.max(), noise_seed
        )
    return function(guided, x, sigmas, disable=True, **options)


def _encode(networks: Networks, prompts: list[str], clip_skip: int | None) -> Any:
    hidden, pooled = [], None
    for encoder, tokenizer in zip(networks.encoders, networks.tokenizers, strict=True):
        ids = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        out = encoder(ids, output_hidden_states=True)
        pooled = out[0]
        if networks.family == "sdxl":
            hidden.append(out.hidden_states[-2 - (clip_skip or 0)])
        elif clip_skip is None:
            hidden.append(out[0])
        else:
            text = getattr(encoder, "text_model", encoder)
            hidden.append(text.final_layer_norm(out.hidden_states[-1 - clip_skip]))
    return torch.cat(hidden, dim=-1), pooled
