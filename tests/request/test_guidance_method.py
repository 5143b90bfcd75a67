"""Guidance methods of requests: they reach the image, and what they cannot go with is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kdrt
from kdrt.cli.request_json import json_request
from kdrt.errors import InvalidRequestError
from kdrt.request.complete import complete
from tests.support.tiny_model import TinyModel, tiny_model

SHARED: dict[str, Any] = {"seed": 3, "steps": 4, "guidance_scale": 6.0}


def latents(model: TinyModel, **fields: Any) -> Tensor:
    images = model.pipeline("a", "b", **SHARED, **fields, output_type="latent").images
    assert isinstance(images, Tensor)
    return images.clone()


def test_a_method_and_its_settings_reach_the_image(sdxl: TinyModel) -> None:
    plain = latents(sdxl)
    assert torch.equal(latents(sdxl, guidance_method="cfg"), plain)
    whole = latents(sdxl, guidance_method="apg", apg_eta=1.0, apg_threshold=0)
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    others = [
        plain,
        latents(sdxl, guidance_method="apg"),
        latents(sdxl, guidance_method="apg", apg_eta=0.5),
        latents(sdxl, guidance_method="apg", apg_threshold=0.1),
        latents(sdxl, guidance_method="cfg_zero_star"),
    ]
    for index, one in enumerate(others):
        assert all((one - other).abs().max() > 1e-3 for other in others[:index])


def test_a_method_costs_no_evaluation(sdxl: TinyModel) -> None:
    calls = []
    for method in ("cfg", "apg", "cfg_zero_star"):
        before = len(sdxl.unet.calls)
        latents(sdxl, guidance_method=method)
        calls.append(len(sdxl.unet.calls) - before)
    assert calls == [4, 4, 4]


def test_an_image_tells_its_method(sdxl: TinyModel, tmp_path: Path) -> None:
    made = sdxl.pipeline("a", **SHARED, guidance_method="apg", apg_eta=0.25, apg_threshold=2)
    made.save(path := tmp_path / "a.png")
    again = kdrt.request_from(path)
    assert (again["guidance_method"], again["apg_eta"], again["apg_threshold"]) == ("apg", 0.25, 2)
    assert sdxl.pipeline(**again).images[0].tobytes() == made.images[0].tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_method": "agp"}, "guidance_method.*apg"),
        ({"apg_eta": 0.5}, "apg_eta belongs to guidance_method='apg', and it is 'cfg'"),
        (
            {"guidance_method": "cfg_zero_star", "apg_threshold": 2.0},
            "apg_threshold belongs to guidance_method='apg', and it is 'cfg_zero_star'",
        ),
        ({"guidance_method": "apg", "apg_eta": -1}, "apg_eta must be a finite number of at least"),
        (
            {"guidance_method": "apg", "guidance_rescale": 0.5},
            "guidance_rescale belongs to guidance_method='cfg', and it is 'apg'; set that, or ",
        ),
        (
            {"guidance_method": "apg", "guidance_scale": 1},
            "guidance_method='apg' would be of no effect: at guidance_scale=1 there is no guidance",
        ),
    ],
)
def test_what_does_not_go_together(sdxl: TinyModel, fields: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        sdxl.pipeline("a", steps=1, **fields)


@pytest.mark.parametrize("name", ["cfg-zero-star", "CFG Zero Star"])
def test_names_of_methods_are_read_as_those_of_samplers_are(name: Any) -> None:
    assert complete({"guidance_method": name})["guidance_method"] == "cfg_zero_star"
    assert json_request({"guidance_method": name}, Path())["guidance_method"] == "cfg_zero_star"


def test_a_distilled_model_has_nothing_to_combine(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, distilled=True)
    with pytest.raises(InvalidRequestError, match="is distilled to give guided ones only"):
        model.pipeline("a", steps=1, guidance_method="apg")
