"""What a stranger may not ask for."""

from __future__ import annotations

from typing import Any, cast

import pytest
from PIL import Image

from kdrt.bundle import LatentFacts
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.limits import RequestLimits

FACTS = LatentFacts(channels=4, scale=8, default_height=64, default_width=64)
LIMITS = RequestLimits(pixels=64 * 64, steps=10, images=4, prompt=20)


def check(**fields: Any) -> int:
    return LIMITS.check(cast(Request, fields), FACTS)


@pytest.mark.parametrize(
    ("fields", "images"),
    [
        ({}, 1),
        ({"prompt": "a circle"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": ["a", "b"], "images_per_prompt": 2}, 4),
        ({"prompt": []}, 1),
        ({"steps": 10, "width": 128, "height": 32, "prompt": "x" * 20}, 1),
        ({"sigmas": [1.0] * 11}, 1),
    ],
)
def test_what_is_within_them_is_counted(fields: dict[str, Any], images: int) -> None:
    assert check(**fields) == images


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 11}, "steps"),
        ({"sigmas": [1.0] * 12}, "sigmas"),
        ({"timesteps": [1.0] * 12}, "timesteps"),
        ({"width": 65}, "size"),
        ({"height": 4096}, "size"),
        ({"width": 128, "height": 64}, "size"),
        ({"images_per_prompt": 5}, "images_per_prompt"),
        ({"prompt": ["a", "b"], "images_per_prompt": 3}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": "x" * 21}, "prompt"),
        ({"prompt": ["a", "x" * 21]}, "prompt"),
        ({"negative_prompt": "x" * 21}, "negative_prompt"),
        ({"prompt_2": "x" * 21}, "prompt_2"),
        ({"negative_prompt_2": ["x" * 21]}, "negative_prompt_2"),
    ],
)
def test_what_is_beyond_them_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(LimitError) as error:
        check(**fields)
    assert error.value.field == named


def test_an_image_to_begin_with_counts_where_no_size_is_asked_for() -> None:
    large = Image.new("RGB", (128, 64))
    with pytest.raises(LimitError, match="128x64 has 8192 pixels"):
        check(image=large)
    assert check(image=large, width=64, height=64) == 1


def test_the_code_of_others_is_not_run() -> None:
    with pytest.raises(UnsupportedError, match="use kdrt's own"):
        check(sampler="k_diffusion.sample_heun")


@pytest.mark.parametrize("name", ["pixels", "steps", "images", "prompt", "input_pixels"])
def test_a_limit_is_a_number_above_0(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"max_{name} must be a whole number"):
        RequestLimits(**{name: 0})


@pytest.mark.parametrize("scale", [1e38, -100.5, float("nan"), {"unet": 101}, {"unet": {"": 101}}])
def test_scales_of_which_no_image_comes_are_refused(scale: Any) -> None:
    LIMITS.check_scales({"style": 100, "other": {"unet": -100.0}})
    with pytest.raises(RequestError, match="must be from -100 to 100, not"):
        LIMITS.check_scales({"style": scale})


def test_a_second_pass_is_within_them_too() -> None:
    assert check(width=32, height=32, hires_scale=2, hires_steps=10) == 1
    with pytest.raises(LimitError, match=r"96x96 has 9216 pixels.*smaller hires_scale"):
        check(width=32, height=32, hires_scale=3)
    with pytest.raises(LimitError, match="hires_steps is 11"):
        check(width=32, height=32, hires_scale=2, hires_steps=11)


def test_a_masked_part_is_answered_with_the_whole_image() -> None:
    small, large = Image.new("RGB", (64, 64)), Image.new("RGB", (96, 64))
    assert check(image=small, inpaint_padding=4, width=64, height=64) == 1
    with pytest.raises(LimitError, match=r"96x64 has 6144 pixels.*leave inpaint_padding out"):
        check(image=large, inpaint_padding=4, width=32, height=32)
