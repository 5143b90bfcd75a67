"""The second pass of text to image, which the web UI calls "hires fix"."""

from __future__ import annotations

from typing import Any

from kdrt.bundle import LatentFacts
from kdrt.common.validation import excerpt
from kdrt.request.hires import larger_side
from kdrt.serve.a1111.bodies import TextBody
from kdrt.serve.errors import RequestError, UnsupportedError

_SCALE, _UPSCALER, _STRENGTH = 2.0, "Latent", 0.75
"""The web UI's defaults."""

_AS_BEFORE = ("", "use same sampler", "use same scheduler", "use same checkpoint")
"""What clients send where the second pass is to be like the first."""


def hires_of(body: TextBody, facts: LatentFacts) -> dict[str, Any]:
    """The fields of a second pass; none where it is not asked for.

    Args:
        body: as it came.
        facts: of the model; they hold the default size.

    Raises:
        RequestError: sizes or the strength are out of range.
        UnsupportedError: the second pass is to differ from the first in what it is here told with
            it, or in its proportions.
    """
    if not body.enable_hr:
        return {}
    _check_like_the_first(body)
    strength = _STRENGTH if body.denoising_strength is None else body.denoising_strength
    if not 0 < strength <= 1:
        raise RequestError(
            f"with enable_hr denoising_strength must be above 0 and at most 1, not "
            f"{excerpt(strength)}",
            "denoising_strength",
        )
    return {
        "hires_scale": _scale(body, facts),
        "hires_steps": body.hr_second_pass_steps or None,
        "hires_strength": strength,
        "hires_upscaler": body.hr_upscaler or _UPSCALER,
    }


def _scale(body: TextBody, facts: LatentFacts) -> float:
    """The factor, which may be told by a side."""
    if not (body.hr_resize_x or body.hr_resize_y):
        return _SCALE if body.hr_scale is None else body.hr_scale
    width, height = body.width or facts.default_width, body.height or facts.default_height
    scales = [
        asked / side
        for asked, side in ((body.hr_resize_x, width), (body.hr_resize_y, height))
        if asked
    ]
    sizes = {tuple(larger_side(each, s, facts.scale) for each in (width, height)) for s in scales}
    if min(scales) < 1:
        raise RequestError(
            f"hr_resize_x and hr_resize_y must not be below width and height, {width}x{height}",
            "hr_resize_x",
        )
    if len(sizes) > 1:
        raise UnsupportedError(
            f"hr_resize_x and hr_resize_y are of other proportions than {width}x{height}, and "
            "nothing is cut off: send one of them",
            "hr_resize_x",
        )
    return scales[0]


def _check_like_the_first(body: TextBody) -> None:
    """Refuse a second pass by another model, sampler or prompt."""
    same: dict[str, tuple[object, ...]] = {
        "hr_checkpoint_name": (),
        "hr_sampler_name": (body.sampler_name, body.sampler_index),
        "hr_scheduler": (body.scheduler,),
        "hr_prompt": (body.prompt,),
        "hr_negative_prompt": (body.negative_prompt,),
        "hr_cfg": (0, 1, body.cfg_scale),
    }
    for name, first in same.items():
        value = getattr(body, name)
        as_before = isinstance(value, str) and value.lower() in _AS_BEFORE
        if value is not None and not as_before and value not in first:
            raise UnsupportedError(
                f"{name} is not supported: the second pass is made like the first; leave it out",
                name,
            )
