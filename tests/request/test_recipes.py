"""Recipes: what they set, what counts before them, and which models they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kdrt
from kdrt.bundle import EdmFacts, Manifest
from kdrt.errors import InvalidRequestError
from kdrt.request.complete import complete
from kdrt.request.fields import Request
from kdrt.request.grid import training_table
from kdrt.request.job import Job
from kdrt.request.recipes import RECIPES
from kdrt.request.recorded import RecordedRequest
from kdrt.request.resolve import resolve
from kdrt.sampling import NoiseSchedule, Plan
from tests.support.requests import request_of
from tests.support.tiny_model import TinyModel, tiny_model

SD = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")


def resolved(model: TinyModel, manifest: Manifest | None = None, **fields: Any) -> Job:
    manifest = manifest or model.manifest
    request = request_of({"prompt": "a", **fields})
    return resolve(
        request, manifest, model.pipeline.engines["unet"].spec, training_table(manifest.scheduler)
    )


def diffusers_timesteps(scheduler: str, steps: int, **options: Any) -> list[int]:
    diffusers = pytest.importorskip("diffusers")
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    made = getattr(diffusers, scheduler)(**table, **options)
    made.set_timesteps(steps)
    timesteps: list[int] = made.timesteps.tolist()
    return timesteps


EDM = EdmFacts(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras")
TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers, of NumPy 2
@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        *((f"lightning-{n}", "EulerDiscreteScheduler", TRAILING) for n in (2, 4, 8)),
        *((f"hyper-{n}", "DDIMScheduler", TRAILING) for n in (2, 4, 8)),
        ("hyper-cfg-12", "DDIMScheduler", TRAILING),
        ("hyper-unified-1", "TCDScheduler", {}),
        *((f"lcm-{n}", "LCMScheduler", {}) for n in (2, 4, 8)),
        *((f"tcd-{n}", "TCDScheduler", {}) for n in (4, 8)),
        ("turbo-1", "EulerAncestralDiscreteScheduler", TRAILING),
        ("pcm-16", "DDIMScheduler", TRAILING),
    ],
)
def test_the_timesteps_are_the_published_schedulers(
    sdxl: TinyModel, name: str, scheduler: str, options: dict[str, Any]
) -> None:
    expected = diffusers_timesteps(scheduler, RECIPES[name].steps, **options)
    plan = resolved(sdxl, recipe=name).plan
    assert plan.sigmas == pytest.approx([*map(SD.sigma, expected), 0.0], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "sampler", "timesteps"),
    [
        ("dmd2-4", "lcm", [999, 749, 499, 249]),
        ("dmd2-1", "lcm", [399]),
        ("hyper-unet-1", "lcm", [800]),
        ("turbo-4", "euler_ancestral", [999, 899, 799, 699]),
    ],
)
def test_timesteps_that_no_scheduler_has_by_itself(
    sdxl: TinyModel, name: str, sampler: str, timesteps: list[int]
) -> None:
    plan = resolved(sdxl, recipe=name).plan
    assert plan.sampler == sampler
    assert plan.sigmas == pytest.approx([*map(SD.sigma, timesteps), 0.0], rel=1e-12)


def test_every_recipe_is_what_its_name_says(sdxl: TinyModel) -> None:
    for name, recipe in RECIPES.items():
        assert name.rpartition("-")[2] == str(recipe.steps)
        facts = sdxl.manifest.scheduler.model_copy(update={"prediction_type": recipe.prediction})
        manifest = sdxl.manifest.model_copy(update={"scheduler": facts})
        job = resolved(sdxl, manifest, recipe=name)
        assert isinstance(job.plan, Plan)
        assert (job.plan.sampler, job.plan.evaluations) == (recipe.sampler, recipe.steps)
        guided = name.startswith("hyper-cfg")
        assert job.guidance_scale == (manifest.default_guidance_scale if guided else 1.0)


def settings(**fields: Any) -> dict[str, Any]:
    """What a request comes to, as far as recipes are concerned."""
    request: Any = complete(request_of(fields))
    assert complete(request) == request
    names = ("steps", "sampler", "sampler_options", "schedule", "sigmas", "timesteps")
    return {name: request[name] for name in names if request[name] is not None}


HYPER = {"steps": 1, "sampler": "tcd", "sampler_options": {"eta": 1.0}, "schedule": "consistency"}
UNET = {"steps": 1, "sampler": "lcm", "schedule": "trailing", "timesteps": (800,)}


@pytest.mark.parametrize(
    ("recipe", "fields", "expected"),
    [
        ("hyper-unified-1", {}, HYPER),
        ("Hyper Unified 1", {"steps": None}, HYPER),
        ("hyper-unified-1", {"steps": 4}, HYPER | {"steps": 4}),
        (
            "hyper-unified-1",
            {"sampler_options": {"s_noise": 0.9}},
            HYPER | {"sampler_options": {"eta": 1.0, "s_noise": 0.9}},
        ),
        (
            "hyper-unified-1",
            {"sampler_options": {"eta": 0.3}},
            HYPER | {"sampler_options": {"eta": 0.3}},
        ),
        (
            "hyper-unified-1",
            {"sampler": "euler"},
            {"steps": 1, "sampler": "euler", "schedule": "consistency"},
        ),
        ("hyper-unified-1", {"sampler": "TCD"}, HYPER | {"sampler": "TCD"}),
        (
            "hyper-unified-1",
            {"sampler": "Euler a Karras"},
            {
                "steps": 1,
                "sampler": "euler_ancestral",
                "sampler_options": {},
                "schedule": "karras",
            },
        ),
        ("hyper-unet-1", {}, UNET),
        ("hyper-unet-1", {"steps": 2}, {"steps": 2, "sampler": "lcm", "schedule": "trailing"}),
        ("hyper-unet-1", {"timesteps": [700]}, UNET | {"timesteps": [700]}),
        (
            "hyper-unet-1",
            {"sigmas": [9.0, 0.0]},
            {"steps": 1, "sampler": "lcm", "schedule": "trailing", "sigmas": [9.0, 0.0]},
        ),
    ],
)
def test_what_else_is_said_counts_before_a_recipe(
    recipe: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert settings(recipe=recipe, **fields) == expected


def test_guidance(sdxl: TinyModel, tmp_path: Path) -> None:
    assert resolved(sdxl, recipe="lcm-4", guidance_scale=2.0).guidance_scale == 2.0
    # A network that was distilled to take the scale has no half to leave out.
    distilled = tiny_model(tmp_path, distilled=True)
    assert resolved(distilled, recipe="lcm-4").guidance_scale == 8.0
    default = distilled.manifest.default_guidance_scale
    assert resolved(distilled, recipe="dmd2-4").guidance_scale == default


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("lightening-4", "unknown recipe 'lightening-4'; known: .*; did you mean 'lightning-4'"),
        ("", "unknown recipe ''; known: lightning-1, "),
        (4, "unknown recipe 4; known: "),
    ],
)
def test_no_such_recipe(recipe: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        complete(request_of({"recipe": recipe}))


@pytest.mark.parametrize(
    ("recipe", "facts", "message"),
    [
        (
            "lightning-4",
            {"prediction_type": "v_prediction"},
            r"^the recipe 'lightning-4' is for models that predict the noise \(epsilon\), and '.*' "
            r"predicts velocity \(v_prediction\); if its UNet is of that kind, export it with "
            "--prediction-type epsilon$",
        ),
        (
            "lightning-1",
            {},
            r"models that predict the image itself \(sample\), and '.*' predicts the noise",
        ),
        (
            "lightning-1",
            {"prediction_type": "sample", "rescale_betas_zero_snr": True},
            "whose first timestep holds some of the image, and that of '.*' is noise alone",
        ),
        (
            "tcd-4",
            {"edm": EDM},
            "with training timesteps, and '.*' was trained on a range of noise levels",
        ),
    ],
)
def test_models_that_a_recipe_is_not_for(
    sdxl: TinyModel, recipe: str, facts: dict[str, Any], message: str
) -> None:
    changed = sdxl.manifest.scheduler.model_copy(update=facts)
    manifest = sdxl.manifest.model_copy(update={"scheduler": changed})
    with pytest.raises(InvalidRequestError, match=message):
        resolved(sdxl, manifest, recipe=recipe)


def test_options_of_a_schedule_that_a_recipe_replaces(sdxl: TinyModel) -> None:
    fields: dict[str, Any] = {"recipe": "hyper-unet-1", "schedule_options": {"rho": 5}}
    message = r"the timesteps of the recipe 'hyper-unet-1' replace; say which schedule too"
    with pytest.raises(InvalidRequestError, match=message):
        resolved(sdxl, **fields)
    assert resolved(sdxl, **fields, schedule="karras").plan.steps == 1
    with pytest.raises(InvalidRequestError, match="which sigmas and timesteps replace"):
        resolved(sdxl, **fields, timesteps=[700])


def test_an_image_tells_what_its_recipe_came_to(sdxl: TinyModel, tmp_path: Path) -> None:
    made = sdxl.pipeline("a", seed=3, recipe="hyper-unified-2")
    made.save(path := tmp_path / "a.png")
    again = kdrt.request_from(path)
    assert "recipe" not in again
    assert again["guidance_scale"] == 1.0
    assert {name: again[name] for name in ("steps", "schedule")} == {
        "steps": 2,
        "schedule": "consistency",
    }
    assert again["sampler_options"] == {"eta": 1.0}
    assert sdxl.pipeline(**again).images[0].tobytes() == made.images[0].tobytes()


def test_a_recipe_given_anew_replaces_what_an_image_tells() -> None:
    told: Request = {"prompt": "a", "steps": 30, "guidance_scale": 7.0, "schedule": "karras"}
    recorded = RecordedRequest(told, {}, None)
    assert recorded.changed({"recipe": "lcm-4"}).fields == {"prompt": "a", "recipe": "lcm-4"}
    both = recorded.changed({"recipe": "lcm-4", "steps": 6}).fields
    assert both == {"prompt": "a", "recipe": "lcm-4", "steps": 6}
