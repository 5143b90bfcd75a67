"""Perturbed-attention guidance of an exported model beside diffusers' own pipelines."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import AutoPipelineForText2Image

import kdrt
from kdrt.pipeline.pipeline import Pipeline
from tests.support.tiny_bundles import STEPS, TinyModel, by_diffusers, by_kdrt

LAYERS = ["mid", "down_blocks.1", "up_blocks.(0|1).attentions.0"]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    home = tmp_path_factory.mktemp("pag")
    return TinyModel.make(request.param, home, variants=["pag"], pag_layers=LAYERS)


@pytest.fixture(scope="module")
def pipe(model: TinyModel) -> Pipeline:
    return kdrt.load(model.bundle)


def theirs(model: TinyModel, **options: Any) -> Any:
    pipe = AutoPipelineForText2Image.from_pipe(
        model.diffusers(), enable_pag=True, pag_applied_layers=LAYERS
    )
    pipe.set_progress_bar_config(disable=True)
    return by_diffusers(pipe, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"pag_scale": 3.0},
        {"pag_scale": 2.0, "pag_adaptive_scale": 0.004},
        {"pag_scale": 3.0, "guidance_rescale": 0.6},
        {"pag_scale": 3.0, "guidance_scale": 1.0},
    ],
    ids=["plain", "adaptive", "rescaled", "without CFG"],
)
def test_it_is_what_diffusers_makes(
    model: TinyModel, pipe: Pipeline, options: dict[str, Any]
) -> None:
    # At 1 diffusers runs without an unconditional half, and at 1 only.
    expected = theirs(model, **options)
    actual = by_kdrt(pipe, **options)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    off = by_kdrt(pipe, **{name: value for name, value in options.items() if "pag" not in name})
    assert (actual - off).abs().max() > 1e-2 * expected.abs().max()


def test_an_image_says_what_it_took(model: TinyModel, pipe: Pipeline) -> None:
    def rows(**options: Any) -> int | None:
        made = pipe("a", steps=STEPS, sampler="euler", width=32, height=32, seed=1, **options)
        return made.unet_rows

    assert rows() == 2 * STEPS
    assert rows(pag_scale=3) == 3 * STEPS
    assert rows(pag_scale=3, guidance_scale=1) == 2 * STEPS
    assert rows(pag_scale=3, guidance_interval=(0.01, 5.0)) == 3 * STEPS - 2
    made = pipe("a", steps=1, width=32, height=32, seed=1, pag_scale=3, pag_adaptive_scale=0.001)
    assert "PAG scale: 3, PAG adaptive scale: 0.001" in str(made.infotexts[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pag_adaptive_scale": 0.1}, "pag_adaptive_scale belongs to pag_scale"),
        ({"pag_scale": 1, "guidance_method": "apg"}, "pag_scale goes with guidance_method='cfg'"),
        ({"pag_scale": -1}, "pag_scale must be"),
    ],
)
def test_what_means_nothing_is_refused(
    pipe: Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=message):
        pipe("a", **options)


def test_a_generation_may_wait_for_one_of_another_unet(pipe: Pipeline) -> None:
    fields: dict[str, Any] = {"steps": 2, "width": 32, "height": 32, "seed": 1}
    expected = [pipe("a", **fields, pag_scale=scale).images[0].tobytes() for scale in (0.0, 3.0)]
    waiting = [pipe.stream("a", **fields, pag_scale=scale) for scale in (0.0, 3.0)]
    assert [each.result().images[0].tobytes() for each in waiting] == expected


def test_the_size_of_a_second_pass_is_for_the_unet_that_makes_it(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 1, "width": 32, "height": 32, "hires_scale": 2}
    pipe("a", steps=1, width=32, height=32)
    monkeypatch.setattr(pipe.engines["unet"], "limits", lambda: {"h": (16, 16)})
    monkeypatch.setattr(pipe.engines["unet"], "bind", lambda **dims: pytest.fail("another UNet's"))
    assert pipe("a", **fields, pag_scale=3).images[0].size == (64, 64)


def test_the_bundle_knows_its_layers(model: TinyModel, pipe: Pipeline) -> None:
    manifest = pipe.bundle.manifest
    assert manifest.variants == {"pag": {"unet": "unet-pag"}}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1" in manifest.pag_layers
    assert not any("attn2" in name for name in manifest.pag_layers)
