"""What asks for nothing is taken, and what is not done here is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from kdrt.serve.a1111.bodies import ImageBody, TextBody
from kdrt.serve.a1111.refused import check_refused
from kdrt.serve.errors import UnknownNameError, UnsupportedError


@pytest.mark.parametrize(
    "fields",
    [
        {"hr_scale": 2, "hr_upscaler": "Latent", "hr_distilled_cfg": 3.5, "enable_hr": False},
        {"restore_faces": None, "tiling": False, "styles": [], "script_name": "None"},
        {"subseed": 12, "subseed_strength": 0, "seed_resize_from_w": -1, "seed_resize_from_h": 0},
        {"refiner_checkpoint": "", "refiner_switch_at": 0.8, "initial_noise_multiplier": 1},
        {"mask_blur": 4, "inpainting_fill": 1, "init_images": [], "image_cfg_scale": 1.5},
        {"save_images": True, "do_not_save_samples": False, "something_new": 0},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}, "clip_skip": 2},
        {
            "override_settings": {"sd_model_checkpoint": "demo"},
            "override_settings_restore_afterwards": False,
        },
    ],
)
def test_fields_that_ask_for_nothing(fields: dict[str, Any]) -> None:
    check_refused(TextBody.model_validate(fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restore_faces", True),
        ("tiling", True),
        ("styles", ["photo"]),
        ("subseed_strength", 0.3),
        ("seed_resize_from_w", 512),
        ("script_name", "X/Y/Z plot"),
        ("refiner_checkpoint", "sdxl"),
        ("disable_extra_networks", True),
        ("s_min_uncond", 0.5),
        ("infotext", "Steps: 20"),
        ("initial_noise_multiplier", 0.9),
        ("init_images", ["AAAA"]),
        ("mask", "AAAA"),
    ],
)
def test_what_is_not_done_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=f"^{field} is not supported: .") as refused:
        check_refused(TextBody.model_validate({field: value}))
    assert refused.value.field == field


def test_settings_that_stay_are_refused() -> None:
    fields = {
        "override_settings": {"CLIP_stop_at_last_layers": 2},
        "override_settings_restore_afterwards": False,
    }
    with pytest.raises(UnsupportedError, match="send override_settings_restore_afterwards true"):
        check_refused(TextBody.model_validate(fields))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'stepz' is not supported; did you mean 'steps'"):
        check_refused(ImageBody.model_validate({"stepz": 3}))


@pytest.mark.parametrize(
    "script",
    [
        {"args": []},
        {"args": [False]},
        {"args": [False, {"ad_model": "face_yolov8n.pt"}]},
        {"args": [{"enabled": False, "model": "canny"}, {"enabled": False}]},
        {"args": [{"enable": False, "model": "mm_sd15_v3.safetensors"}]},
        {"args": [None, "", 0]},
        [],
        None,
    ],
)
def test_scripts_that_are_off(script: Any) -> None:
    check_refused(TextBody(alwayson_scripts={"ADetailer": script}))


@pytest.mark.parametrize(
    "script",
    [
        {"args": [True, {"ad_model": "face_yolov8n.pt"}]},
        {"args": [{"model": "canny", "image": "AAAA"}]},
        {"args": [{"enabled": False}, {"enabled": True}]},
        {"args": {"enabled": True}},
        {"args": [-1, False, 7]},
        {"arguments": [1]},
        "on",
    ],
)
def test_scripts_that_are_on_are_refused_by_name(script: Any) -> None:
    with pytest.raises(UnsupportedError, match="the script 'ADetailer' in alwayson_scripts"):
        check_refused(TextBody(alwayson_scripts={"ADetailer": script}))
