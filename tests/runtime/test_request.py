"""Every wrong argument: one clear sentence, before anything is computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import TinyModel, tiny_model

from kdrt.errors import InvalidRequest

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": ["a", "  "]}, "prompt is empty"),
    ({"prompt": []}, "prompt is an empty list"),
    ({"prompt": 3}, "prompt must be a string or a list of strings, not 3"),
    ({"prompt": ["a", None]}, "prompt must be a string or a list"),
    ({"negative_prompt": ["a", "b"]}, "2 strings in negative_prompt for 1 prompts"),
    ({"negative_prompt": b"a"}, "negative_prompt must be a string"),
    ({"prompt_2": ["a", "b"]}, "2 strings in prompt_2"),
    ({"negative_prompt_2": ["a", "b"]}, "2 strings in negative_prompt_2"),
    ({"height": 100}, "height must be a multiple of 8, and 100 is not: use 96 or 104"),
    ({"width": 7}, "width must be a whole number of at least 8, not 7"),
    ({"width": 64.0}, "width must be a whole number"),
    ({"height": 0}, "height must be a whole number of at least 8"),
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"steps": True}, "steps must be a whole number"),
    ({"sampler": "eulre"}, "unknown sampler 'eulre'; known: euler, heun"),
    ({"sampler": None}, "unknown sampler None"),
    ({"schedule": "carras"}, "unknown schedule 'carras'; known: karras"),
    ({"sampler_options": {"eta": 1.0}}, "dpmpp_2m has no option 'eta'"),
    ({"sampler_options": ["eta"]}, "sampler_options must be a mapping"),
    ({"sigmas": [1.0, 2.0]}, "sigmas must descend"),
    ({"sigmas": "karras"}, "sigmas must be a sequence of numbers"),
    ({"sigmas": 3}, "sigmas must be a sequence of numbers"),
    ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, not -1.0"),
    ({"guidance_scale": math.inf}, "guidance_scale must be a finite number"),
    ({"guidance_scale": "5"}, "guidance_scale must be a finite number"),
    ({"guidance_rescale": 1.5}, "guidance_rescale must be from 0 to 1, not 1.5"),
    ({"guidance_rescale": math.nan}, "guidance_rescale must be a finite number"),
    ({"images_per_prompt": 0}, "images_per_prompt must be a whole number of at least 1"),
    ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": "7"}, "seed must be a whole number"),
    ({"seed": [1, 2]}, "2 seeds for 1 images"),
    ({"seed": [-1]}, "seed must be a whole number"),
    ({"seed": 2**64}, "seed must be at most 18446744073709551615, not 18446744073709551616"),
    ({"seed": 10**5000}, "seed must be at most 18446744073709551615, not int of 16610 bits"),
    ({"noise_seed": 2**64}, "noise_seed must be at most 18446744073709551615"),
    ({"latents": torch.zeros(1, 4, 6, 8)}, r"of shape \[1, 4, 8, 6\].*not torch.float32 \[1, 4, 6"),
    ({"latents": torch.zeros(1, 4, 8, 6, dtype=torch.int64)}, "floating-point.*not torch.int64"),
    ({"latents": torch.full((1, 4, 8, 6), math.nan)}, "latents must be finite"),
    ({"latents": [0.0]}, "floating-point tensor.*not list"),
    ({"clip_skip": -1}, "clip_skip must be a whole number of at least 0"),
    ({"clip_skip": 9}, "clip_skip must be from 0 to 2"),
    ({"freeu": (1, 2, 3)}, "freeu must be four finite numbers"),
    ({"freeu": "sd9"}, "no preset 'sd9'; it has sd14"),
    ({"freeu": (1, 2, 3, math.nan)}, "freeu must be four finite numbers"),
    ({"original_size": 64}, "original_size must be two whole numbers"),
    ({"negative_target_size": (64, -1)}, "negative_target_size must be a whole number"),
    ({"output_type": "jpg"}, "unknown output_type 'jpg'; known: pil, np, pt, latent"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_arguments(sdxl: TinyModel, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sdxl.pipeline(**({"prompt": "a"} | wrong))
    assert not sdxl.unet.calls
    assert not sdxl.text_encoders[0].calls


@pytest.mark.parametrize(
    "argument",
    [
        {"prompt_2": "b"},
        {"negative_prompt_2": "b"},
        {"original_size": (64, 64)},
        {"target_size": (64, 64)},
        {"crops_coords_top_left": (1, 0)},
        {"negative_original_size": (64, 64)},
    ],
)
def test_arguments_for_sdxl_only(sd: TinyModel, argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"only SDXL models take {next(iter(argument))}"):
        sd.pipeline("a", **argument)


def test_lists_are_sizes_too(sd: TinyModel, sdxl: TinyModel) -> None:
    assert sd.pipeline("a", steps=1, crops_coords_top_left=[0, 0]).images
    sdxl.pipeline("a", steps=1, original_size=[512, 256], negative_crops_coords_top_left=[0, 0])
    assert sdxl.unet.calls[0]["time_ids"].tolist() == [[512, 256, 0, 0, 64, 48]] * 2


def test_freeu_needs_a_bundle_with_freeu(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, freeu=False)
    with pytest.raises(InvalidRequest, match="has no FreeU in its UNet"):
        model.pipeline("a", freeu=(1.3, 1.4, 0.9, 0.2))
    assert model.pipeline("a", steps=1, seed=0).images


def test_too_many_steps_for_the_checkpoints_own_grid(sd: TinyModel) -> None:
    with pytest.raises(InvalidRequest, match="at most 1000"):
        sd.pipeline("a", steps=1001, schedule="scheduler")


def test_numbers_of_numpy_are_numbers(sd: TinyModel) -> None:
    result = sd.pipeline(
        ("a",),
        height=np.int64(64),
        steps=np.int32(1),
        seed=np.int64(3),
        guidance_scale=np.float32(4.0),
    )
    assert result.seeds == [3]
    assert result.parameters[0].guidance_scale == 4.0
