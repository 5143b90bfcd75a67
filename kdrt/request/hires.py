"""The second pass of a request, at a larger size: an image to image of what the first one makes.

The web UI calls it "hires fix". As there, ``hires_steps`` are the steps that it runs: the schedule
is made so much longer that ``hires_strength`` of it is so many.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch

from kdrt.bundle import Manifest
from kdrt.common.validation import MAX_STEPS, excerpt, finite_or_none
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import FIELDS, Request
from kdrt.request.grid import is_custom, strength_of
from kdrt.request.job import Job

_OF_SECOND_PASS = ("hires_steps", "hires_strength", "hires_upscaler")

_NOT_TOGETHER: Mapping[str, str] = MappingProxyType(
    {
        "image": "enlarge the image itself, and leave hires_scale out",
        "denoising_start": "let the model that ends the run make the second pass",
        "denoising_end": "let the model that ends the run make the second pass",
    }
)
"""Fields that do not go with a second pass, and what to do instead."""

_LARGEST_STRENGTH = 0.999
"""As in the web UI: the schedule of a second pass is never as short as its steps."""


def check_hires_fields(request: Request) -> None:
    """Refuse fields of a second pass that is not asked for, and what does not go with one.

    Raises:
        InvalidRequestError: see above; or a strength is out of range.
    """
    if request["hires_scale"] is None:
        for name in _OF_SECOND_PASS:
            given, default = request[name], FIELDS[name].default  # type: ignore[literal-required]
            # Arrays, which are refused here too, have no single answer to a comparison.
            if type(given) is not type(default) or given != default:
                raise InvalidRequestError(
                    f"{name} is of the second pass, which hires_scale asks for; give that, or "
                    f"leave {name} out"
                )
        return
    asked = request["hires_strength"]
    strength = finite_or_none(asked)
    if strength is None or not 0 < strength <= 1:
        raise InvalidRequestError(
            f"hires_strength must be above 0 and at most 1, not {excerpt(asked)}"
        )
    for name, advice in _NOT_TOGETHER.items():
        if request[name] is not None:  # type: ignore[literal-required]
            raise InvalidRequestError(f"{name} and hires_scale do not go together: {advice}")
    if request["hires_steps"] is not None and is_custom(request):
        raise InvalidRequestError(
            "hires_steps make a schedule longer, and sigmas and timesteps are a grid of their own, "
            "of which hires_strength runs a part: leave hires_steps out"
        )


def larger_side(side: int, hires_scale: float, multiple: int) -> int:
    """A side of the second pass in pixels, a multiple of the VAE's scale.

    Args:
        side: of the first pass.
        hires_scale: of the request.
        multiple: of which it is one.
    """
    # A factor that was a fraction of two sides may be a little below it.
    return max(side, int(side * hires_scale * (1 + 1e-9)) // multiple * multiple)


def second_request(request: Request, first: Job, manifest: Manifest) -> Request:
    """The request of the second pass: an image to image, of latents that are yet to be made.

    Args:
        request: complete, with a ``hires_scale``, and its grid as a list.
        first: its first pass.
        manifest: of the model.

    Raises:
        InvalidRequestError: its schedule would be too long.
    """
    facts, scale = manifest.latents, request["hires_scale"]
    assert scale is not None
    height, width = (larger_side(side, scale, facts.scale) for side in (first.height, first.width))
    # Without memory of its own: nobody has checked that there is any for this size.
    latents = torch.zeros(1, 1, 1, 1).expand(
        1, facts.channels, height // facts.scale, width // facts.scale
    )
    steps, strength = request["steps"], request["hires_strength"]
    if not is_custom(request):
        run = request["hires_steps"] or request["steps"]
        steps = int(run / min(strength, _LARGEST_STRENGTH))
        if steps > MAX_STEPS:
            raise InvalidRequestError(
                f"hires_steps={run} at hires_strength={strength:g} are of a schedule of {steps} "
                f"steps, and {MAX_STEPS} are possible: ask for fewer, or for more strength"
            )
        strength = strength_of(run, steps)
    changed: Request = {
        "width": width,
        "height": height,
        "image": latents,
        "latents": None,
        "steps": steps,
        "strength": strength,
        "seed": list(first.seeds),
        "noise_seed": None if first.noise_seeds is None else list(first.noise_seeds),
        "generator": None,
        "hires_scale": None,
    }
    return cast(Request, {**request, **changed})
