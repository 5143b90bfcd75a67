"""The units of the web UI's ControlNet extension, as control images.

A unit names a model, which is the name of a control here, and a module, which makes its image of
another one. Modules work at the size of the result, as with `pixel_perfect`; `processor_res` says
nothing here. What would be another image is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps

from kdrt.common.validation import did_you_mean, excerpt, finite_or_none
from kdrt.images.control import ControlImage
from kdrt.images.input import to_rgb
from kdrt.request.controls import MAX_CONTROLS
from kdrt.serve.errors import LimitError, RequestError, UnknownNameError, UnsupportedError
from kdrt.serve.images import SeveralImages

SCRIPT = "controlnet"
"""Its key in ``alwayson_scripts``, in any case."""

_PLACE = "alwayson_scripts"

MODULES: Mapping[str, str | None] = {
    "none": None,
    "canny": "canny",
    "invert": "invert",
    "invert (from white bg & black line)": "invert",
    "tile_resample": "tile",
}

_THRESHOLDS: Mapping[str | None, tuple[Any, Any]] = {"canny": (100, 200), "tile": (1, None)}
"""By processor, what it works with; of the others the web UI reads none."""

_STRETCHED, _CROPPED = (0, "just resize", "resize"), (1, "crop and resize", "inner fit")
_FILLED = (2, "resize and fill", "outer fit")

_USUAL: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (0, "balanced"),
    "mask": (),
    "mask_image": (),
    "effective_region_mask": (),
    "advanced_weighting": (),
    "inpaint_crop_input_image": (True,),
    "hr_option": ("both", "hiresfixoption.both", 0),
    "use_preview_as_input": (),
    "batch_images": (),
    "batch_image_dir": (),
    "ipadapter_input": (),
    "union_control_type": ("unknown",),
    "animatediff_batch": (),
    "input_mode": ("simple", "inputmode.simple"),
    "pulid_mode": ("fidelity", "pulidmode.fidelity"),
    "guidance": (1,),
    "guessmode": (),
    "invert_image": (),
    "rgbbgr_mode": (),
}
"""What may be said where nothing else than usual is meant, beside null, false and what is empty."""

_READ = (
    "enabled",
    "module",
    "model",
    "weight",
    "image",
    "input_image",
    "resize_mode",
    "threshold_a",
    "threshold_b",
    "guidance_start",
    "guidance_end",
)

_WITHOUT_EFFECT = (
    "pixel_perfect",
    "processor_res",
    "low_vram",
    "lowvram",
    "save_detected_map",
    "is_ui",
    "loopback",
    "output_dir",
    "generated_image",
)
"""On the image that is made."""


def units_of(scripts: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The units that are turned on.

    Raises:
        RequestError: what the extension is told is no list of units.
    """
    units: list[Mapping[str, Any]] = []
    for name, script in (scripts or {}).items():
        if name.lower() != SCRIPT or not script:
            continue
        args = script.get("args") if isinstance(script, Mapping) else script
        if not isinstance(args, Sequence) or isinstance(args, str):
            raise RequestError("controlnet in alwayson_scripts must hold args, a list", _PLACE)
        for unit in args:
            if not isinstance(unit, Mapping):
                raise RequestError(
                    f"a unit of controlnet must be an object, not {excerpt(unit)}", _PLACE
                )
            if unit.get("enabled", True):
                units.append(unit)
    if len(units) > MAX_CONTROLS:
        raise LimitError(
            f"these are {len(units)} units of controlnet, and this server takes {MAX_CONTROLS}",
            _PLACE,
        )
    return units


def control_of(
    unit: Mapping[str, Any],
    size: tuple[int, int],
    images: SeveralImages,
    begun_with: Image.Image | None = None,
) -> ControlImage:
    """The control image that a unit means.

    Args:
        unit: one that is turned on.
        size: width and height of the image that it is for.
        images: reads those of all units.
        begun_with: the image that the request begins with, which a unit without one takes.

    Raises:
        RequestError: it has no image or no model, or a value is wrong.
        UnsupportedError: it asks for what is not done here.
        UnknownNameError: it has a field that the extension has not.
    """
    for name, value in unit.items():
        known = (*_READ, *_USUAL, *_WITHOUT_EFFECT)
        if value and name not in known:
            raise UnknownNameError(
                f"the field {excerpt(name)} of a unit of controlnet is not supported"
                f"{did_you_mean(name, known)}: leave it out",
                _PLACE,
            )
    for name, usual in _USUAL.items():
        value = unit.get(name)
        if value and _word(value) not in usual:
            raise UnsupportedError(
                f"{name} {excerpt(value)} of a unit of controlnet is not supported: leave it out",
                _PLACE,
            )
    module = _word(unit.get("module") or "none")
    if module not in MODULES:
        raise UnsupportedError(
            f"the module {excerpt(module)} of controlnet is not supported: send 'none' and the "
            f"image that it makes, or one of {', '.join(MODULES)}",
            _PLACE,
        )
    process = MODULES[module]
    for name, usual in zip(
        ("threshold_a", "threshold_b"), _THRESHOLDS.get(process, ()), strict=False
    ):
        if usual is not None and unit.get(name, -1) not in (None, -1, usual):
            raise UnsupportedError(
                f"{name} {excerpt(unit[name])} of the module {excerpt(module)} is not supported: "
                f"send {usual}, or none",
                _PLACE,
            )
    model = re.sub(r"\s*\[[0-9a-fA-F]+\]$", "", str(unit.get("model") or ""))
    if model in ("", "None"):
        raise RequestError("a unit of controlnet needs a model: the name of a control", _PLACE)
    return ControlImage(
        _image(unit, size, images, begun_with),
        model,
        scale=_number(unit, "weight", 1.0),
        start=_number(unit, "guidance_start", 0.0),
        end=_number(unit, "guidance_end", 1.0),
        process=process,
    )


def _image(
    unit: Mapping[str, Any],
    size: tuple[int, int],
    images: SeveralImages,
    begun_with: Image.Image | None,
) -> Image.Image:
    given = unit.get("image") or unit.get("input_image")
    if isinstance(given, Mapping):
        if given.get("mask"):
            raise UnsupportedError("masks in units of controlnet are not supported", _PLACE)
        given = given.get("image")
    if given is None and begun_with is not None:
        return begun_with
    if not isinstance(given, str):
        raise RequestError("a unit of controlnet needs an image, as base64 or a data URL", _PLACE)
    image = images.read(_PLACE, given)
    mode = _word(unit.get("resize_mode", 1))
    if mode in _CROPPED:
        return ImageOps.fit(to_rgb(_PLACE, image), size, Image.Resampling.LANCZOS)
    # Nothing is left to fill where the proportions are those of the result.
    fits = image.width * size[1] == image.height * size[0]
    if mode in _STRETCHED or (mode in _FILLED and fits):
        return image
    raise UnsupportedError(
        f"resize_mode {excerpt(mode)} of a unit of controlnet is not supported"
        f"{' for an image of other proportions than the result' if mode in _FILLED else ''}: send "
        "0 or 1",
        _PLACE,
    )


def _number(unit: Mapping[str, Any], name: str, default: float) -> float:
    number = finite_or_none(unit.get(name, default))
    if number is None:
        raise RequestError(
            f"{name} of a unit of controlnet must be a number, not {excerpt(unit[name])}", _PLACE
        )
    return number


def _word(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
