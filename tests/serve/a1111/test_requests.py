"""What a body asks for, as a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt.bundle import Manifest, open_bundle
from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt.serve.a1111.bodies import TextBody
from kdrt.serve.a1111.lists import samplers, schedulers
from kdrt.serve.a1111.requests import _strength, request_of
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.limits import RequestLimits


@pytest.fixture(scope="module")
def sdxl(demo_bundle: Path) -> Manifest:
    """A model that takes the last hidden state but one, and zeros for no negative prompt."""
    return open_bundle(str(demo_bundle)).manifest


@pytest.fixture(scope="module")
def manifest(sdxl: Manifest) -> Manifest:
    """One that takes the last hidden state, as SD 1 does."""
    encoders = (sdxl.text_encoders[0].model_copy(update={"layer": -1}),)
    return sdxl.model_copy(update={"text_encoders": encoders, "zeros_for_empty_negative": False})


def made_of(manifest: Manifest, **fields: Any) -> dict[str, Any]:
    return dict(request_of(TextBody(**fields), manifest, RequestLimits()))


def test_what_nobody_says_is_as_in_the_web_ui(manifest: Manifest) -> None:
    assert made_of(manifest) == {
        "prompt": "",
        "negative_prompt": "",
        "prompt_weighting": "a1111",
        "steps": 50,
        "guidance_scale": 7.0,
        "images_per_prompt": 1,
        "clip_skip": 0,
        "sampler": "Euler",
        "sampler_options": {},
        "schedule": "normal",
        "schedule_options": {},
        "noise": "a1111",
        "noise_options": {"source": "nv"},
    }


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"seed": 7}, {"seed": 7}),
        ({"batch_size": 2, "n_iter": 3}, {"images_per_prompt": 6}),
        ({"sampler_index": "Heun"}, {"sampler": "Heun"}),
        ({"sampler_index": "Heun", "sampler_name": "LMS"}, {"sampler": "LMS"}),
        ({"sampler_name": "DPM++ 2M"}, {"schedule": "karras"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, {"schedule": "karras"}),
        ({"sampler_name": "DPM++ 2M SDE"}, {"schedule": "exponential"}),
        ({"scheduler": "SGM Uniform"}, {"schedule": "sgm_uniform"}),
        ({"scheduler": "uniform"}, {"schedule": "normal"}),
        ({"scheduler": "beta"}, {"schedule": "beta_sigma"}),
        ({"scheduler": "kl_optimal"}, {"schedule": "kl_optimal_a1111"}),
        ({"sampler_name": "DPM2"}, {"schedule_options": {"discard_penultimate": True}}),
        ({"sampler_name": "Euler a", "eta": 0.5}, {"sampler_options": {"eta": 0.5}}),
        ({"sampler_name": "DDIM", "eta": 1.0}, {"sampler_options": {"eta": 1.0}}),
        (
            {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.1},
            {"sampler_options": {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.1}},
        ),
        ({"clip_skip": 2}, {"clip_skip": 1}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 3}}, {"clip_skip": 2}),
        ({"override_settings": {"emphasis": "No norm"}}, {"prompt_weighting": "a1111_no_norm"}),
        ({"override_settings": {"comma_padding_backtrack": 5}}, {"comma_backtrack": 5}),
        (
            {"override_settings": {"randn_source": "CPU", "eta_noise_seed_delta": 31337}},
            {"noise_options": {"source": "cpu", "eta_noise_seed_delta": 31337}},
        ),
        ({"sampler_name": "DPM++ SDE"}, {"noise_options": {"source": "cpu"}}),
        (
            {"scheduler": "Karras", "override_settings": {"rho": 5.0, "sigma_max": 9.0}},
            {"schedule_options": {"sigma_max": 9.0, "rho": 5.0}},
        ),
        (
            {"sampler_name": "DDIM", "override_settings": {"eta_ddim": 0.3, "eta_ancestral": 0.9}},
            {"sampler_options": {"eta": 0.3}},
        ),
    ],
)
def test_fields(manifest: Manifest, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    request = made_of(manifest, **fields)
    assert {name: request[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"eta": 1.0, "s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}, "sampler_options"),
        ({"sampler_name": "DPM++ 2M", "eta": 0.5, "s_churn": 3}, "sampler_options"),
        ({"override_settings": {"rho": 5.0}}, "schedule_options"),
        ({"seed": -1}, "seed"),
        ({"sampler_name": "DPM adaptive"}, "noise"),
    ],
)
def test_fields_that_have_no_effect(manifest: Manifest, fields: dict[str, Any], name: str) -> None:
    assert not made_of(manifest, **fields).get(name)


@pytest.mark.parametrize(
    ("label", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("dpm++ 2m sgm_uniform", "dpm++ 2m", "sgm_uniform"),
        ("DPM++ 2M SGM Uniform", "DPM++ 2M", "sgm_uniform"),
        ("DPM++ 2M Uniform", "DPM++ 2M", "normal"),
        ("DPM++ 2M Beta", "DPM++ 2M", "beta_sigma"),
        ("DPM++ 2M SDE Heun Automatic", "DPM++ 2M SDE Heun", "exponential"),
        ("DPM++ 2M SDE Heun", "DPM++ 2M SDE Heun", "exponential"),
        ("DDIM", "DDIM", "normal"),
    ],
)
def test_a_schedule_behind_a_sampler(
    manifest: Manifest, label: str, sampler: str, schedule: str
) -> None:
    for scheduler in (None, "Automatic"):
        request = made_of(manifest, sampler_name=label, scheduler=scheduler)
        assert (request["sampler"], request["schedule"]) == (sampler, schedule)


def test_two_schedules(manifest: Manifest) -> None:
    label = "Euler Karras"
    same = made_of(manifest, sampler_name=label, scheduler="Karras")
    assert same["schedule"] == "karras"
    with pytest.raises(RequestError, match="names the scheduler karras, and scheduler is 'beta'"):
        made_of(manifest, sampler_name=label, scheduler="beta")


def test_of_an_sdxl_model(sdxl: Manifest) -> None:
    assert "negative_prompt" not in made_of(sdxl)
    assert made_of(sdxl, negative_prompt="dark")["negative_prompt"] == "dark"
    for stop in (1, 2):
        assert made_of(sdxl, clip_skip=stop)["clip_skip"] == 0
    with pytest.raises(UnsupportedError, match="CLIP_stop_at_last_layers 3 has no effect on"):
        made_of(sdxl, clip_skip=3)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"scheduler": "nonsense"}, RequestError, "unknown scheduler 'nonsense'; known: automatic"),
        ({"sampler_name": "k_diffusion.sample_heun"}, UnsupportedError, "not served"),
        (
            {"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 3}},
            RequestError,
            "clip_skip is 2, and CLIP_stop_at_last_layers 3",
        ),
        (
            {"sampler_name": "DPM++ SDE", "override_settings": {"randn_source": "NV"}},
            UnsupportedError,
            "the noise of DPM\\+\\+ SDE on a GPU cannot be made here",
        ),
        ({"width": 10_000, "height": 10_000}, LimitError, "10000x10000"),
        ({"batch_size": 10_000, "n_iter": 10_000}, LimitError, "100000000 images"),
    ],
)
def test_what_cannot_be_had_is_refused(
    manifest: Manifest, fields: dict[str, Any], error: type[RequestError], said: str
) -> None:
    with pytest.raises(error, match=said):
        made_of(manifest, **fields)


def test_all_names_that_are_listed_are_taken(manifest: Manifest) -> None:
    for row in samplers():
        assert SAMPLERS[row["aliases"][0]].label == row["name"]
        assert made_of(manifest, sampler_name=row["name"])["sampler"] == row["name"]
    for row in schedulers()[1:]:
        by_name, by_label = (
            made_of(manifest, scheduler=row[key])["schedule"] for key in ("name", "label")
        )
        assert by_name == by_label
        assert by_name in SCHEDULES


@given(asked=st.floats(0, 1), steps=st.integers(1, 150))
def test_strength_runs_the_steps_of_the_web_ui(asked: float, steps: int) -> None:
    strength = _strength(asked, steps)
    assert 0 < strength <= 1
    # Its loop begins at the step before those that remain, so that 0 makes one.
    assert int(strength * steps) == min(int(min(asked, 0.999) * steps) + 1, steps)


@pytest.mark.parametrize("asked", [-0.1, 1.1, float("nan")])
def test_strength_out_of_range(asked: float) -> None:
    with pytest.raises(RequestError, match="denoising_strength must be from 0 to 1"):
        _strength(asked, 20)
