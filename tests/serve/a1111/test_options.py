"""The web UI's settings."""

from __future__ import annotations

from typing import Any

import pytest

from kdrt.serve.a1111.options import Overrides, all_options, check_overrides, check_unchanged
from kdrt.serve.errors import RequestError, UnknownNameError, UnsupportedError


@pytest.mark.parametrize(
    "settings",
    [
        {"sd_vae": "Automatic", "face_restoration": False, "token_merging_ratio": 0.0},
        {"samples_save": True, "grid_format": "jpg", "show_progress_every_n_steps": 5},
        {"webp_lossless": False, "return_mask": False, "return_grid": True},
        {"forge_additional_modules": [], "something_new": None},
    ],
)
def test_settings_that_ask_for_nothing(settings: dict[str, Any]) -> None:
    check_overrides(Overrides.model_validate(settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sd_vae", "other.safetensors"),
        ("tiling", True),
        ("token_merging_ratio", 0.5),
        ("initial_noise_multiplier", 0.5),
        ("webp_lossless", True),
        ("return_mask", True),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=f"the setting {name} is not supported with"):
        check_overrides(Overrides.model_validate({name: value}))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sd_vea", "sd_vae"), ("webp_lossles", "webp_lossless"), ("save_ttx", "save_txt")],
)
def test_unknown_settings_are_refused(name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"'{name}' is not supported; did you mean '{meant}"):
        check_overrides(Overrides.model_validate({name: "other"}))


def test_all_settings_can_be_sent_back_as_they_are() -> None:
    settings = all_options("demo")
    assert settings["sd_model_checkpoint"] == "demo"
    check_unchanged(Overrides.model_validate(settings))
    with pytest.raises(RequestError, match="eta_ancestral is set by each request"):
        check_unchanged(Overrides.model_validate({**settings, "eta_ancestral": 0.5}))
    with pytest.raises(UnsupportedError, match="sd_vae"):
        check_unchanged(Overrides.model_validate({**settings, "sd_vae": "other"}))
