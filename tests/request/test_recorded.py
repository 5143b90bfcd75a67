"""What an image tells makes it again: a request written into a text, and read back."""

from __future__ import annotations

import math
import shlex
from dataclasses import fields as members
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import numpy as np
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

import kdrt
from kdrt.bundle import Manifest
from kdrt.cli.command import command_of
from kdrt.cli.like import with_prompts
from kdrt.cli.request_options import takes_request
from kdrt.errors import InvalidRequestError
from kdrt.images.infotext import parse_infotext
from kdrt.images.metadata import MetadataWarning
from kdrt.pipeline.metadata import infotexts_of
from kdrt.request.fields import FIELDS, Request
from kdrt.request.grid import training_table
from kdrt.request.job import Job
from kdrt.request.recorded import RecordedRequest, request_of_settings
from kdrt.request.resolve import resolve
from kdrt.sampling import SAMPLERS, SCHEDULES, find_noise
from kdrt_engines import EngineSpec
from tests.support.requests import request_of
from tests.support.tiny_model import TinyModel, tiny_model

Model = tuple[Manifest, EngineSpec]

SHAPES_NO_IMAGE = {"generator", "images_per_prompt", "image_filter", "recipe"}
"""By themselves: a recipe is told as what it sets."""
NOT_TEXT = {
    *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds"),
    *("negative_pooled_prompt_embeds", "image", "mask_image", "latents", "ip_adapter_image"),
    "ip_adapter_image_embeds",
}
"""JobSnapshot as "given"."""
NEED_OTHERS = {
    *("strength", "keep_unmasked", "denoising_start", "ip_adapter_scale", "ip_adapter_masks"),
    *("hires_steps", "hires_strength", "hires_upscaler"),
    *("mask_blur", "mask_grow", "mask_invert", "soft_mask", "inpaint_fill", "inpaint_padding"),
}
"""Of no effect without one of those."""
NEED_A_MODEL = {"aesthetic_score", "negative_aesthetic_score", "deep_cache"}
"""Of the refiner, and of bundles with a shallow UNet."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        *("(red:1.3) BREAK [x]", "a, b: c", "a\nNegative prompt: b", "a\nSteps: 2, Seed: 3"),
        *('"quoted"', "{}", " a ", "\n", "a\r\nb", "Negative prompt:", "Steps: 20", "a\n\nb\n"),
    ]
)
seeds = st.integers(0, 2**64 - 8)
sides = st.integers(1, 40).map(lambda side: 8 * side)
positive = st.floats(0.01, 50)
grids = st.lists(st.floats(0.05, 900), min_size=2, max_size=6, unique=True).map(
    lambda levels: sorted(levels, reverse=True)
)
BY_HAND: dict[str, st.SearchStrategy[Any]] = {
    "prompt": texts | st.lists(texts, min_size=1, max_size=3),
    "negative_prompt": texts,
    "prompt_2": texts,
    "negative_prompt_2": texts,
    "width": sides,
    "height": sides,
    "hires_scale": st.floats(1, 3),
    "seed": seeds,
    "noise_seed": seeds,
    "steps": st.integers(1, 30),
    "sampler": st.sampled_from(
        [*SAMPLERS, "DPM++ 2M Karras", "DPM++ 2M SDE Heun Exponential", "Euler a", "sample_lms"]
    ),
    "schedule": st.sampled_from(sorted(SCHEDULES)),
    "sampler_options": st.dictionaries(
        st.sampled_from(["eta", "s_noise", "s_churn", "solver_type"]),
        st.floats(0, 1) | st.sampled_from(["heun", "midpoint", 1, 0]),
        max_size=2,
    ),
    "schedule_options": st.dictionaries(
        st.sampled_from(["rho", "discard_penultimate", "sigma_min", "sigma_max"]),
        positive | st.booleans() | st.none(),
        max_size=2,
    ),
    "sigmas": grids,
    "timesteps": grids,
    "noise": st.sampled_from(["per_image", "a1111", "brownian", "comfyui"]),
    "noise_options": st.dictionaries(
        st.sampled_from(["eta_noise_seed_delta", "source"]),
        st.integers(0, 40_000) | st.sampled_from(["cpu", "nv"]),
        max_size=2,
    ),
    "guidance_interval": st.tuples(st.floats(0, 2), st.floats(2.5, 14)),
    "clip_skip": st.integers(0, 1),
    "freeu": st.just("sdxl") | st.tuples(*[st.floats(-2, 2)] * 4),
}


def values(name: str) -> st.SearchStrategy[Any]:
    """Values of a field, by its metadata where nothing else is said."""
    field = FIELDS[name]
    if name in BY_HAND:
        return BY_HAND[name]
    if get_origin(field.scalar) is Literal:
        return st.sampled_from(get_args(field.scalar))
    if field.scalar is bool:
        return st.booleans()
    if field.scalar is int:
        return st.integers(int(field.minimum or 0), int(field.maximum or 1000))
    if field.scalar is float:
        low = field.minimum if field.minimum is not None else field.above
        high = field.maximum if field.maximum is not None else field.below
        assert low is not None
        assert high is not None
        return st.floats(low, high, exclude_min=field.above is not None)
    assert field.form is not None, f"say how to draw values of {name}"
    return st.tuples(st.integers(0, 2000), st.integers(0, 2000))


TOLD = sorted(FIELDS.keys() - SHAPES_NO_IMAGE - NOT_TEXT - NEED_OTHERS - NEED_A_MODEL)
ANY = {name: values(name) for name in TOLD if name != "prompt"}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Some fields at a time: most combinations of many are refused."""
    names = draw(st.lists(st.sampled_from(sorted(ANY)), max_size=6, unique=True))
    drawn = {name: draw(ANY[name]) for name in names}
    drawn |= {"prompt": draw(BY_HAND["prompt"]), "images_per_prompt": draw(st.integers(1, 2))}
    return request_of(drawn)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    made = [tiny_model(tmp_path_factory.mktemp(family), family) for family in ("sd", "sdxl")]
    return [(model.manifest, model.pipeline.engines["unet"].spec) for model in made]


def resolved(request: Request, model: Model) -> Job:
    manifest, spec = model
    return resolve(request, manifest, spec, training_table(manifest.scheduler))


def told(job: Job, model: Model, index: int) -> RecordedRequest:
    """What the text of one of its images says."""
    return request_of_settings(parse_infotext(str(infotexts_of(job.snapshot)[index])), "kdrt")


def image_of(job: Job, index: int) -> dict[str, Any]:
    """What decides over one image of a job, and what its text tells."""
    facts = {each.name: getattr(job, each.name) for each in members(Job)}
    facts["snapshot"] = infotexts_of(job.snapshot)[index]
    del facts["output_type"], facts["image_filter"]
    for name in ("prompts", "negatives"):
        facts[name] = facts[name] and [column[index] for column in facts[name]]
    for name in ("seeds", "noise_seeds"):
        facts[name] = facts[name] and facts[name][index]
    facts["noise_options"] = {**find_noise(job.noise).options, **job.noise_options}
    if facts["weighting"].mode == "none":
        facts["weighting"] = "none"  # nothing is moved back to a comma
    if job.second is not None:
        second = job.second.job
        facts["second"] = job.second.upscaler, second.height, second.width, second.plan
    return facts


@given(request=requests(), sdxl=st.booleans())
def test_a_text_makes_the_same_image(models: list[Model], request: Request, sdxl: bool) -> None:
    model = models[sdxl]
    try:
        job = resolved(request, model)
    except InvalidRequestError:
        assume(False)
    for index in range(len(job.seeds)):
        recorded = told(job, model, index)
        assert recorded.left_out == {}
        again = resolved(recorded.usable().fields, model)
        assert image_of(again, 0) == image_of(job, index)


@given(request=requests(), sdxl=st.booleans())
def test_a_command_makes_the_same_image(models: list[Model], request: Request, sdxl: bool) -> None:
    """What ``kdrt info`` shows can be typed again."""
    model = models[sdxl]
    try:
        job = resolved(request, model)
    except InvalidRequestError:
        assume(False)
    fields = told(job, model, 0).usable().fields
    words = shlex.split(command_of("demo", fields))
    assume(all(word.isprintable() or "\n" in word for word in words))
    assert image_of(resolved(typed(words[2:]), model), 0) == image_of(job, 0)


def typed(words: list[str]) -> Request:
    """What the command line makes of words."""
    kept: dict[str, Any] = {}
    app = typer.Typer()

    def command(
        bundle: Annotated[str, typer.Argument()],
        prompts: Annotated[list[str] | None, typer.Argument()] = None,
        *,
        request: Request,
    ) -> None:
        kept.update(with_prompts(request, prompts or []))

    app.command()(takes_request(command))
    typer.main.get_command(app).main(words, standalone_mode=False)
    return cast(Request, kept)


def test_every_field_is_told_or_named_here() -> None:
    for name, field in FIELDS.items():
        assert bool(field.record) == (name not in SHAPES_NO_IMAGE), name


@pytest.mark.parametrize("name", sorted(NOT_TEXT))
def test_what_a_text_cannot_hold_is_named(sdxl: TinyModel, name: str) -> None:
    key = FIELDS[name].record
    settings = {"Prompt": "a", "Steps": "2", key: "given", "Version": "kdrt 1"}
    recorded = request_of_settings(settings, "kdrt")
    assert name not in recorded.fields
    assert recorded.left_out == {key: "given"}
    with pytest.warns(MetadataWarning, match=f"not taken over from the image: {key}"):
        recorded.warn_of_left_out()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_makes_the_same_image(sdxl: TinyModel, tmp_path: Path, suffix: str) -> None:
    pipe = sdxl.pipeline
    made = pipe(
        ["a (red:1.2) circle", "b"],
        "blurry, dark",
        prompt_weighting="a1111_no_norm",
        sampler="Euler a",
        sampler_options={"eta": 0.1 + 0.2},
        guidance_scale=1 / 3 + 4,
        freeu=(1.1, 1.2, 0.9, 0.8),
        original_size=(100, 200),
        crops_coords_top_left=(3, 4),
        steps=3,
        seed=11,
    )
    for index in range(2):
        path = made.save(tmp_path / f"a{index}{suffix}", index)
        request = kdrt.request_from(path)
        again = pipe(**request)
        assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[index]))
        assert again.infotexts == [made.infotexts[index]]
    other = pipe(**kdrt.request_from(path, steps=4))
    assert not np.array_equal(np.asarray(other.images[0]), np.asarray(made.images[1]))


def recorded(**settings: str) -> RecordedRequest:
    return request_of_settings({"Prompt": "a", "Steps": "9", **settings}, "kdrt")


OURS = {"Version": "kdrt 1"}


def test_a_new_sampler_does_not_get_the_options_of_the_old() -> None:
    found = recorded(Sampler="Euler a", Eta="0.5", **{"Schedule type": "Simple"}, **OURS)
    assert found.fields["sampler_options"] == {"eta": 0.5}
    assert "sampler_options" not in found.changed({"sampler": "heun"}).fields
    assert found.changed({"sampler": "heun"}).fields["schedule"] == "simple"
    label = found.changed({"sampler": "DPM++ 2M Karras"}).fields
    assert "schedule" not in label
    assert found.changed({"steps": 3}).fields["sampler_options"] == {"eta": 0.5}


def test_new_options_join_those_of_the_same_sampler() -> None:
    found = recorded(Sampler="TCD", Eta="1", **OURS)
    assert found.changed({"sampler_options": {"s_noise": 0.9}}).fields["sampler_options"] == {
        "eta": 1,
        "s_noise": 0.9,
    }
    assert found.changed({"sampler": "tcd"}).fields["sampler_options"] == {"eta": 1}
    assert found.changed({"sampler_options": None}).fields["sampler_options"] is None
    other = found.changed({"sampler": "heun", "sampler_options": {"s_churn": 0.5}}).fields
    assert other["sampler_options"] == {"s_churn": 0.5}
    # One sampler, but a label that says how it solves.
    sde = recorded(Sampler="DPM++ 2M SDE", Eta="0.5", **OURS)
    assert "sampler_options" not in sde.changed({"sampler": "DPM++ 2M SDE Heun"}).fields


def test_none_takes_the_place_of_nothing_else() -> None:
    found = recorded(Sampler="Heun", Sigmas="3 1 0", **{"Prompt 2": "b"}, **OURS)
    kept = found.changed({"recipe": None, "timesteps": None}).fields
    assert (kept["steps"], kept["sampler"], kept["sigmas"]) == (9, "Heun", [3, 1, 0])
    # A second prompt belongs to the first, in whose place come embeddings.
    assert "prompt_2" not in found.changed({"prompt": None}).fields


def test_new_steps_replace_a_grid_of_ones_own() -> None:
    found = recorded(Sigmas="3 1 0", **{"Schedule type": "Custom"}, **OURS)
    assert found.fields["sigmas"] == [3, 1, 0]
    assert "sigmas" not in found.changed({"steps": 5}).fields
    assert "sigmas" in found.changed({"seed": 5}).fields


def test_changes_are_checked() -> None:
    with pytest.raises(kdrt.UnknownFieldError, match="no field 'stepz'; did you mean 'steps'"):
        recorded().changed({"stepz": 3})  # type: ignore[typeddict-unknown-key]


A1111 = (
    "a (red:1.2)\nNegative prompt: b\nSteps: 20, Sampler: {}, CFG scale: 7, Seed: 5, "
    "Size: 512x768, {}"
)
ENSD = {"source": "cpu", "eta_noise_seed_delta": 31337}


@pytest.mark.parametrize(
    ("sampler", "rest", "expected"),
    [
        ("Euler a", "Version: v1.10.1", {"schedule": "normal", "noise_options": {"source": "nv"}}),
        ("DPM++ 2M", "Schedule type: Automatic, Version: v1.10.1", {"schedule": "karras"}),
        ("DPM++ 2M", "Schedule type: SGM Uniform, RNG: CPU", {"schedule": "sgm_uniform"}),
        ("DPM++ 2M Karras", "Clip skip: 2", {"sampler": "DPM++ 2M Karras", "clip_skip": 1}),
        ("Euler a", "ENSD: 31337, RNG: CPU", {"noise_options": ENSD}),
        ("Euler", "Emphasis: No norm", {"prompt_weighting": "a1111_no_norm"}),
        ("Heun", "Sigma churn: 0.5", {"sampler_options": {"s_churn": 0.5}}),
    ],
)  # fmt: skip
def test_images_of_the_web_ui(
    models: list[Model], sampler: str, rest: str, expected: dict[str, Any]
) -> None:
    found = request_of_settings(parse_infotext(A1111.format(sampler, rest)), "AUTOMATIC1111 web UI")
    assert found.left_out == {}
    fields = dict(found.fields)
    assert expected.items() <= fields.items()
    assert fields["prompt_weighting"] == expected.get("prompt_weighting", "a1111")
    assert (fields["width"], fields["height"], fields["noise"]) == (512, 768, "a1111")
    assert (fields["prompt"], fields["negative_prompt"]) == ("a (red:1.2)", "b")
    resolved(found.fields, models[0])


@pytest.mark.parametrize(
    ("sampler", "rest", "key"),
    [
        ("Euler", "Hires upscale: 2, Hires prompt: c", "Hires prompt"),
        ("Euler", "Hires resize: 1024x1536", "Hires resize"),
        ("Euler", "Denoising strength: 0.7", "Denoising strength"),
        ("Euler", 'Lora hashes: "a: 123"', "Lora hashes"),
        ("Euler", "Emphasis: Ignore", "Emphasis"),
        ("PLMS", "RNG: CPU", "Sampler"),
        ("Euler", "Schedule type: Unheard of", "Schedule type"),
        ("DPM++ SDE", "Schedule type: Karras", "RNG"),
        ("DPM adaptive", "Schedule type: Karras", "RNG"),
        ("Heun", "Eta: 0.5", "Eta"),
    ],
)
def test_what_the_web_ui_does_otherwise_is_said(
    models: list[Model], sampler: str, rest: str, key: str
) -> None:
    settings = parse_infotext(A1111.format(sampler, rest))
    found = request_of_settings(settings, "AUTOMATIC1111 web UI").usable()
    assert key in found.left_out
    resolved(found.fields, models[0])


def test_a_file_without_settings(tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(InvalidRequestError, match="carries no generation parameters"):
        kdrt.request_from(path)


def test_numbers_are_told_in_full(sdxl: TinyModel) -> None:
    result = sdxl.pipeline("a", steps=1, seed=0, guidance_scale=math.pi)
    assert float(parse_infotext(str(result.infotexts[0]))["CFG scale"]) == math.pi


def test_the_schedule_behind_the_timesteps_of_a_recipe_is_kept(
    sdxl: TinyModel, tmp_path: Path
) -> None:
    made = sdxl.pipeline("a", recipe="dmd2-1", seed=1)
    assert "Schedule type: Custom" in str(made.infotexts[0])
    made.save(tmp_path / "image.png")
    again = kdrt.request_from(tmp_path / "image.png")
    assert (again["timesteps"], again["schedule"]) == ([399], "trailing")
    other = kdrt.request_from(tmp_path / "image.png", steps=4)
    assert "timesteps" not in other
    assert other["schedule"] == "trailing"
