"""From what a client of the web UI sends to a request that makes the same image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import kdrt
from kdrt.adapters.lora_merge import Scale
from kdrt.bundle import Manifest
from kdrt.common.validation import excerpt
from kdrt.request.grid import strength_of
from kdrt.request.record import EMPHASIS
from kdrt.request.web_ui import web_ui_noise, web_ui_schedule
from kdrt.sampling import SCHEDULES, SamplerInfo, find_sampler, is_foreign
from kdrt.serve.a1111.bodies import ImageBody, ImagesBody, TextBody
from kdrt.serve.a1111.controlnet import SCRIPT, control_of, units_of
from kdrt.serve.a1111.hires import hires_of
from kdrt.serve.a1111.options import Overrides, check_overrides
from kdrt.serve.a1111.prompts import read_negative, read_prompt
from kdrt.serve.a1111.refused import check_refused
from kdrt.serve.a1111.starts import read_start
from kdrt.serve.errors import RequestError, UnsupportedError
from kdrt.serve.images import SeveralImages
from kdrt.serve.limits import RequestLimits

_PROGRAM = "AUTOMATIC1111 web UI"

_STEPS, _GUIDANCE, _SAMPLER, _STRENGTH = 50, 7.0, "Euler", 0.75
"""The web UI's defaults."""

_LARGEST_STRENGTH = 0.999

_SHORTER_GRID = ("dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde")
"""Samplers whose last level of noise but one the web UI leaves out."""

WEB_UI_SCHEDULES: Mapping[str, str] = {
    "uniform": "normal",
    **{info.label.lower().replace(" ", "_"): info.name for info in SCHEDULES.values()},
}
"""The web UI's names of schedules, which are its labels in small letters, and ours."""

_AUTOMATIC = "automatic"

_SCHEDULE_WORDS = sorted(
    {_AUTOMATIC, *WEB_UI_SCHEDULES, *(name.replace("_", " ") for name in WEB_UI_SCHEDULES)},
    key=len,
    reverse=True,
)
"""How a schedule may be named behind a sampler; the longest word that fits counts."""


def loras_of(body: ImagesBody, manifest: Manifest, limits: RequestLimits) -> Mapping[str, Scale]:
    """The LoRAs that a prompt names, with their scales. Takes next to nothing.

    Raises:
        LimitError: a prompt is too long.
        RequestError: it cannot be read.
    """
    prompts = kdrt.Request(prompt=body.prompt or "", negative_prompt=body.negative_prompt or "")
    limits.check(prompts, manifest.latents)
    return read_prompt(body.prompt or "").loras


def request_of(body: ImagesBody, manifest: Manifest, limits: RequestLimits) -> kdrt.Request:
    """What a body asks for, but for its LoRAs. Takes as long as it takes to read its images.

    Args:
        body: whose prompts are within the limits.
        manifest: of the model that makes it.
        limits: of the service.

    Raises:
        RequestError: a value is wrong, or asks for what is not done here.
    """
    check_refused(body)
    overrides = body.overrides
    check_overrides(overrides)
    negative = read_negative(body.negative_prompt or "")
    label = body.sampler_name or body.sampler_index or _SAMPLER
    request: dict[str, Any] = {
        "prompt": read_prompt(body.prompt or "").text,
        "prompt_weighting": _weighting(overrides),
        "steps": _STEPS if body.steps is None else body.steps,
        "guidance_scale": _GUIDANCE if body.cfg_scale is None else body.cfg_scale,
        "images_per_prompt": body.images,
        "clip_skip": _clip_skip(body, manifest),
        **_sampling(label, body, overrides),
    }
    # The web UI gives SDXL models zeros for an empty negative prompt, as kdrt does for none.
    if negative or not manifest.zeros_for_empty_negative:
        request["negative_prompt"] = negative
    if overrides.comma_padding_backtrack is not None:
        request["comma_backtrack"] = overrides.comma_padding_backtrack
    if body.seed not in (None, -1):
        request["seed"] = body.seed
    for side in ("width", "height"):
        if getattr(body, side) is not None:
            request[side] = getattr(body, side)
    if isinstance(body, TextBody):
        request |= hires_of(body, manifest.latents)
    # Before images are brought to the size that is asked for.
    limits.check(cast(kdrt.Request, request), manifest.latents)
    units = units_of(body.alwayson_scripts)
    if not isinstance(body, ImageBody):
        return cast(kdrt.Request, {**request, **_controls(units, request, manifest, limits)})
    start = read_start(body, manifest.latents.scale, limits)
    strength = _STRENGTH if body.denoising_strength is None else body.denoising_strength
    request |= {**start, "strength": _strength(strength, request["steps"])}
    return cast(kdrt.Request, {**request, **_controls(units, request, manifest, limits)})


def _controls(
    units: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    manifest: Manifest,
    limits: RequestLimits,
) -> dict[str, Any]:
    """The control images of a request, if it has some."""
    if not units:
        return {}
    begun_with, facts = request.get("image"), manifest.latents
    size = (
        request.get("width") or facts.default_width,
        request.get("height") or facts.default_height,
    )
    if begun_with is not None and "inpaint_padding" in request:
        size = begun_with.size  # of which a part is made
    images = SeveralImages(SCRIPT, limits.input_pixels)
    return {"control": [control_of(unit, size, images, begun_with) for unit in units]}


def _weighting(overrides: Overrides) -> str:
    modes = {label: mode for mode, label in EMPHASIS.items()}
    return modes[overrides.emphasis or "Original"]


def _clip_skip(body: ImagesBody, manifest: Manifest) -> int:
    """The web UI counts from the last layer, 1, and has the setting for models that usually end
    there."""
    setting, layer = body.overrides.CLIP_stop_at_last_layers, manifest.text_encoders[0].layer
    stop = setting or body.clip_skip or 1
    if stop != (body.clip_skip or stop):
        raise RequestError(
            f"clip_skip is {body.clip_skip}, and CLIP_stop_at_last_layers {stop}: give one of them",
            "clip_skip",
        )
    if layer == -1:
        return stop - 1
    if stop not in (1, -layer):
        raise UnsupportedError(
            f"CLIP_stop_at_last_layers {stop} has no effect on {manifest.name} in the web UI, as "
            "it is for SD 1 models: leave it out",
            "override_settings",
        )
    return 0


def _sampling(label: str, body: ImagesBody, overrides: Overrides) -> dict[str, Any]:
    """Sampler and schedule with their options, and the noise."""
    if is_foreign(label):
        raise UnsupportedError(
            "samplers of the k-diffusion package are not served: use the web UI's names",
            "sampler_name",
        )
    label, named = _split(label)
    sampler = find_sampler(label)
    schedule = _schedule(label, named, body.scheduler)
    grid: dict[str, Any] = {
        option: value
        for option in ("sigma_min", "sigma_max")
        if (value := getattr(overrides, option))
    }
    if overrides.rho and "rho" in SCHEDULES[schedule].options:
        grid["rho"] = overrides.rho
    if sampler.name in _SHORTER_GRID:
        grid["discard_penultimate"] = True
    return {
        "sampler": label,
        "sampler_options": _sampler_options(sampler, body, overrides),
        "schedule": schedule,
        "schedule_options": grid,
        **_noise(label, overrides),
    }


def _split(label: str) -> tuple[str, str | None]:
    """A sampler's label, and the schedule that is named behind it, as in "DPM++ 2M Karras"."""
    small = label.lower()
    for word in _SCHEDULE_WORDS:
        if small.endswith(f" {word}"):
            return label[: -len(word) - 1].rstrip(), word
    return label, None


def _schedule(label: str, named: str | None, scheduler: str | None) -> str:
    """Our name of the schedule that a web UI's names mean."""
    behind, given = (_key(name or _AUTOMATIC) for name in (named, scheduler))
    if _AUTOMATIC not in (behind, given) and behind != given:
        raise RequestError(
            f"sampler_name names the scheduler {behind}, and scheduler is {excerpt(scheduler)}: "
            "give one of them",
            "scheduler",
        )
    key = given if behind == _AUTOMATIC else behind
    if key == _AUTOMATIC:
        return web_ui_schedule("Automatic", label) or "normal"
    if key not in WEB_UI_SCHEDULES:
        known = ", ".join((_AUTOMATIC, *WEB_UI_SCHEDULES))
        raise RequestError(f"unknown scheduler {excerpt(scheduler)}; known: {known}", "scheduler")
    return WEB_UI_SCHEDULES[key]


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _sampler_options(
    sampler: SamplerInfo, body: ImagesBody, overrides: Overrides
) -> dict[str, float]:
    """Those that the sampler has, and that are not as usual."""
    is_ddim = sampler.name == "ddim"
    eta = overrides.eta_ddim if is_ddim else overrides.eta_ancestral
    given = {
        "eta": body.eta if body.eta is not None else eta,
        "s_churn": _first(overrides.s_churn, body.s_churn),
        "s_tmin": _first(overrides.s_tmin, body.s_tmin),
        "s_tmax": _first(overrides.s_tmax, body.s_tmax) or None,  # 0 is no limit
        "s_noise": _first(overrides.s_noise, body.s_noise),
    }
    defaults = sampler.options
    if not is_ddim and not defaults.get("eta"):
        # Clients send 1 to all samplers, which is for those that are ancestral by nature.
        given["eta"] = None
    return {
        name: value
        for name, value in given.items()
        if value is not None and name in defaults and value != defaults[name]
    }


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _noise(label: str, overrides: Overrides) -> dict[str, Any]:
    settings = {"Sampler": label, "ENSD": str(overrides.eta_noise_seed_delta or 0)}
    if overrides.randn_source is not None:
        settings["RNG"] = overrides.randn_source
    noise, options, lost = web_ui_noise(settings, _PROGRAM, label)
    # Where nobody asks, the noise of the CPU has to do.
    if overrides.randn_source not in (None, "CPU") and "RNG" in lost and noise is not None:
        raise UnsupportedError(
            f"the noise of {label} on a GPU cannot be made here: leave randn_source out, or send "
            "'CPU'",
            "override_settings",
        )
    return {} if noise is None else {"noise": noise, "noise_options": options}


def _strength(asked: float, steps: int) -> float:
    """The strength that runs as many steps as the web UI: one more than that fraction of them."""
    if not 0 <= asked <= 1:
        raise RequestError(
            f"denoising_strength must be from 0 to 1, not {excerpt(asked)}", "denoising_strength"
        )
    if steps < 1:  # which is refused with the others
        return 1.0
    return strength_of(min(int(min(asked, _LARGEST_STRENGTH) * steps) + 1, steps), steps)
