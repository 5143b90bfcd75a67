"""What is not done here. It is refused by name where it is asked for, and never left out silently:
an image without it would be another than the one that the client wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdrt.common.validation import did_you_mean, excerpt
from kdrt.serve.a1111.bodies import ImageBody, ImagesBody, TextBody
from kdrt.serve.a1111.controlnet import SCRIPT as CONTROLNET
from kdrt.serve.errors import UnknownNameError, UnsupportedError

_WITHOUT_EFFECT = frozenset(
    {
        *("subseed", "script_args", "comments"),
        *("save_images", "do_not_save_samples", "do_not_save_grid"),
        *("image_cfg_scale", "refiner_switch_at", "firstphase_width", "firstphase_height"),
        *("hr_distilled_cfg", "hr_additional_modules", "distilled_cfg_scale"),
        *TextBody.model_fields,
        *ImageBody.model_fields,
    }
) - {"init_images", "mask", "enable_hr"}
"""They do nothing without another field, which is refused; or for no model that kdrt has; or they
are about files, which are not kept here."""

_ADVICE: Mapping[str, str] = {
    "enable_hr": "it is for /txt2img; resize the image yourself",
    "restore_faces": "there is no face restoration",
    "tiling": "there are no seamless textures",
    "styles": "there are no styles: write them into the prompt",
    "subseed_strength": "seeds are not mixed",
    "seed_resize_from_w": "noise is not made for another size",
    "seed_resize_from_h": "noise is not made for another size",
    "script_name": "there are no scripts",
    "refiner_checkpoint": "there is no refiner in between",
    "disable_extra_networks": "leave the LoRAs out of the prompt",
    "s_min_uncond": "the negative prompt is never skipped",
    "infotext": "send the fields themselves",
    "initial_noise_multiplier": "noise is taken as it is",
    "latent_mask": "send mask",
    "init_images": "send it to /img2img",
    "mask": "send it to /img2img",
}
"""Fields that would change the image, and what there is instead."""

_INERT: Mapping[str, tuple[Any, ...]] = {
    "seed_resize_from_w": (-1,),
    "seed_resize_from_h": (-1,),
    "initial_noise_multiplier": (1,),
    "refiner_checkpoint": ("None",),
    "script_name": ("None",),
}
"""Values that ask for nothing, beside null, false, 0 and what is empty."""

_SWITCHES = ("enabled", "enable", "is_enabled", "ad_tab_enable")


def check_refused(body: ImagesBody) -> None:
    """Refuse what is asked for and not done here.

    Raises:
        UnsupportedError: by a field or a script that the web UI has.
        UnknownNameError: by a field that is not known.
    """
    for name, value in (body.model_extra or {}).items():
        if not value or name in _WITHOUT_EFFECT or value in _INERT.get(name, ()):
            continue
        if name not in _ADVICE:
            known = (*type(body).model_fields, *_ADVICE)
            raise UnknownNameError(
                f"the field {excerpt(name)} is not supported{did_you_mean(name, known)}: "
                "leave it out",
                name,
            )
        raise UnsupportedError(f"{name} is not supported: {_ADVICE[name]}", name)
    if body.override_settings_restore_afterwards is False and body.overrides.model_dump(
        exclude_none=True, exclude={"sd_model_checkpoint"}
    ):
        raise UnsupportedError(
            "settings are those of one request: send override_settings_restore_afterwards true",
            "override_settings_restore_afterwards",
        )
    for name, script in (body.alwayson_scripts or {}).items():
        if name.lower() != CONTROLNET and _is_active(script):
            raise UnsupportedError(
                f"the script {excerpt(name)} in alwayson_scripts is not supported: leave it out, "
                "or turn it off",
                "alwayson_scripts",
            )


def _is_active(script: object) -> bool:
    """Whether a script does anything with these arguments: the first is often its switch."""
    if isinstance(script, Mapping):
        for switch in _SWITCHES:
            if switch in script:
                return bool(script[switch])
        return _is_active(script["args"]) if set(script) == {"args"} else bool(script)
    if isinstance(script, Sequence) and not isinstance(script, str):
        is_off = len(script) > 0 and script[0] is False
        return not is_off and any(map(_is_active, script))
    return bool(script)
