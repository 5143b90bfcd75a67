"""The second pass of text to image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdrt.bundle import LatentFacts
from kdrt.serve.a1111.bodies import ImageBody, TextBody
from kdrt.serve.a1111.hires import hires_of
from kdrt.serve.a1111.lists import upscalers
from kdrt.serve.a1111.refused import check_refused
from kdrt.serve.errors import RequestError, UnsupportedError
from kdrt.serve.model import ServedModel
from tests.support.enlarging import upscaler_facts

FACTS = LatentFacts(channels=4, scale=8, default_height=64, default_width=48)


def fields_of(**fields: Any) -> dict[str, Any]:
    return hires_of(TextBody(**fields), FACTS)


def test_what_nobody_says_is_as_in_the_web_ui() -> None:
    assert fields_of(hr_scale=2, hr_upscaler="Latent", denoising_strength=0.5) == {}
    assert fields_of(enable_hr=True, hr_second_pass_steps=0) == {
        "hires_scale": 2.0,
        "hires_steps": None,
        "hires_strength": 0.75,
        "hires_upscaler": "Latent",
    }


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"hr_scale": 1.5}, 1.5),
        ({"hr_scale": 1.5, "hr_resize_x": 96}, 2.0),
        ({"hr_resize_y": 96}, 1.5),
        ({"width": 512, "height": 512, "hr_resize_x": 768, "hr_resize_y": 768}, 1.5),
        ({"hr_resize_x": 72, "hr_resize_y": 100}, 1.5),  # as near as multiples of 8 are
    ],
)
def test_the_factor(fields: dict[str, Any], scale: float) -> None:
    assert fields_of(enable_hr=True, **fields)["hires_scale"] == scale


def test_what_is_as_in_the_first_pass_is_taken() -> None:
    same = {"hr_prompt": "a", "hr_sampler_name": "Use same sampler", "hr_scheduler": "Karras"}
    first = {"prompt": "a", "scheduler": "Karras", "cfg_scale": 4}
    found = fields_of(enable_hr=True, hr_cfg=4, hr_checkpoint_name="", **same, **first)
    assert found["hires_scale"] == 2


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"hr_prompt": "b"}, UnsupportedError, "hr_prompt is not supported: the second pass is"),
        ({"hr_sampler_name": "Euler"}, UnsupportedError, "hr_sampler_name is not supported"),
        ({"hr_checkpoint_name": "x"}, UnsupportedError, "hr_checkpoint_name is not supported"),
        ({"hr_cfg": 9}, UnsupportedError, "hr_cfg is not supported"),
        ({"hr_resize_x": 96, "hr_resize_y": 64}, UnsupportedError, "other proportions than 48x64"),
        ({"hr_resize_x": 40}, RequestError, "must not be below width and height, 48x64"),
        ({"denoising_strength": 0}, RequestError, "denoising_strength must be above 0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    fields: dict[str, Any], error: type[RequestError], said: str
) -> None:
    with pytest.raises(error, match=said):
        fields_of(enable_hr=True, **fields)


def test_image_to_image_has_none() -> None:
    with pytest.raises(UnsupportedError, match="enable_hr is not supported: it is for /txt2img"):
        check_refused(ImageBody.model_validate({"enable_hr": True}))


def test_networks_that_enlarge_are_listed() -> None:
    manifest = SimpleNamespace(upscalers={"sharp": upscaler_facts(scale=2)})
    model = SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))
    rows = upscalers({"a": cast(ServedModel, model), "b": cast(ServedModel, model)})
    assert [row["name"] for row in rows] == ["Lanczos", "Nearest", "sharp"]
    assert (rows[-1]["model_name"], rows[-1]["scale"]) == ("ESRGAN", 2)
