"""The web UI's settings, of which a client may override some for one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from kdrt.common.literals import COMMA_BACKTRACK
from kdrt.common.validation import did_you_mean, excerpt
from kdrt.serve.errors import RequestError, UnknownNameError, UnsupportedError


class Overrides(pydantic.BaseModel):
    """The settings that have an effect. Null is the web UI's default."""

    model_config = pydantic.ConfigDict(extra="allow", allow_inf_nan=False)

    sd_model_checkpoint: Annotated[
        str | None, pydantic.Field(description="The model; null is the chosen one.")
    ] = None
    CLIP_stop_at_last_layers: Annotated[int | None, pydantic.Field(ge=1, le=12)] = None
    emphasis: Literal["Original", "No norm"] | None = None
    comma_padding_backtrack: Annotated[int | None, pydantic.Field(ge=0, le=74)] = None
    randn_source: Literal["GPU", "CPU", "NV"] | None = None
    eta_noise_seed_delta: int | None = None
    eta_ancestral: float | None = None
    eta_ddim: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    jpeg_quality: Annotated[int | None, pydantic.Field(ge=1, le=100)] = None
    enable_pnginfo: bool | None = None


_DEFAULTS: Mapping[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "emphasis": "Original",
    "comma_padding_backtrack": COMMA_BACKTRACK,
    "randn_source": "GPU",
    "eta_noise_seed_delta": 0,
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": 0.0,
    "s_noise": 1.0,
    "rho": 0.0,
    "sigma_min": 0.0,
    "sigma_max": 0.0,
    "samples_format": "png",
    "jpeg_quality": 95,
    "enable_pnginfo": True,
}
"""Of the settings that have an effect."""

_INERT: Mapping[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", ""),
    "sd_checkpoint_hash": ("",),
    "sd_hypernetwork": ("None", ""),
    "sd_lora": ("None", ""),
    "face_restoration": (False,),
    "face_restoration_model": ("CodeFormer", "GFPGAN", "None", ""),
    "tiling": (False,),
    "token_merging_ratio": (0,),
    "token_merging_ratio_img2img": (0,),
    "token_merging_ratio_hr": (0,),
    "s_min_uncond": (0,),
    "skip_early_cond": (0,),
    "initial_noise_multiplier": (1,),
    "img2img_extra_noise": (0,),
    "img2img_color_correction": (False,),
    "img2img_fix_steps": (False,),
    "inpainting_mask_weight": (1,),
    "always_discard_next_to_last_sigma": (False,),
    "sgm_noise_multiplier": (False,),
    "sd_noise_schedule": ("Default",),
    "use_old_emphasis_implementation": (False,),
    "use_old_karras_scheduler_sigmas": (False,),
    "no_dpmpp_sde_batch_determinism": (False,),
    "sdxl_crop_top": (0,),
    "sdxl_crop_left": (0,),
    "enable_batch_seeds": (True,),
    "enable_prompt_comments": (True,),
    "webp_lossless": (False,),
    "return_mask": (False,),
    "return_mask_composite": (False,),
}
"""Settings that ask for nothing with these values."""

_FILES_AND_PAGES = frozenset(
    {
        *("samples_save", "samples_filename_pattern", "samples_log_stdout"),
        *("grid_save", "grid_format", "grid_extended_filename", "grid_only_if_multiple"),
        *("grid_prevent_empty_spots", "grid_zip_filename_pattern", "grid_text_active_color"),
        *("grid_text_inactive_color", "grid_background_color", "grid_save_to_dirs"),
        *("n_rows", "font", "return_grid", "do_not_show_images"),
        *("save_txt", "save_images_add_number", "save_images_replace_action"),
        *("save_images_before_face_restoration", "save_images_before_highres_fix"),
        *("save_images_before_color_correction", "save_mask", "save_mask_composite"),
        *("save_selected_only", "save_init_img", "save_incomplete_images", "save_to_dirs"),
        *("save_write_log_csv", "use_save_to_dirs_for_ui", "temp_dir", "clean_temp_dir_at_start"),
        *("outdir_samples", "outdir_txt2img_samples", "outdir_img2img_samples"),
        *("outdir_extras_samples", "outdir_grids", "outdir_txt2img_grids", "outdir_img2img_grids"),
        *("outdir_save", "outdir_init_images"),
        *("directories_filename_pattern", "directories_max_prompt_words"),
        *("export_for_4chan", "img_downscale_threshold", "target_side_length"),
        *("show_progressbar", "show_progress_grid", "show_progress_every_n_steps"),
        *("show_progress_type", "show_progress_in_title", "show_warnings"),
        *("live_previews_enable", "live_previews_image_format", "live_preview_content"),
        *("live_preview_allow_lowvram_full", "live_preview_refresh_period"),
        *("live_preview_fast_interrupt", "memmon_poll_rate", "multiple_tqdm"),
        *("hide_samplers", "hide_ldm_prints"),
    }
)
"""Settings about the files and pages of the web UI, whatever they are: there are none here."""


def check_overrides(given: Overrides) -> None:
    """Refuse settings that would change the image and are not known here.

    Raises:
        UnsupportedError: one has a value that is not supported.
        UnknownNameError: there is no such setting.
    """
    for name, value in (given.model_extra or {}).items():
        if value in (None, "", [], {}) or name in _FILES_AND_PAGES:
            continue
        if name in _INERT:
            if value not in _INERT[name]:
                raise UnsupportedError(
                    f"the setting {name} is not supported with {excerpt(value)}: leave it out, or "
                    f"send {_INERT[name][0]!r}",
                    "override_settings",
                )
        else:
            known = (*Overrides.model_fields, *_INERT, *_FILES_AND_PAGES)
            raise UnknownNameError(
                f"the setting {excerpt(name)} is not supported{did_you_mean(name, known)}: "
                "leave it out",
                "override_settings",
            )


def all_options(model: str) -> dict[str, Any]:
    """The settings as they are, with the title of the model."""
    inert = {name: values[0] for name, values in _INERT.items()}
    return {"sd_model_checkpoint": model, **_DEFAULTS, **inert}


def check_unchanged(given: Overrides) -> None:
    """Refuse to change, for all requests to come, what is set for each.

    Raises:
        RequestError: a setting is not what it is here; the model may be another.
        UnknownNameError: there is no such setting.
    """
    check_overrides(given)
    for name, default in _DEFAULTS.items():
        value = getattr(given, name)
        if value is not None and value != default:
            raise RequestError(f"{name} is set by each request: send it in override_settings", name)
