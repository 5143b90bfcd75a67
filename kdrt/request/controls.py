"""The control images of a request: checked, and brought to the size of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.bundle import ControlFacts, Manifest
from kdrt.bundle.components import ADAPTER_COMPONENT, CONTROL_COMPONENT
from kdrt.common.validation import check_number, unknown_word
from kdrt.denoise.controls import ControlComponent
from kdrt.denoise.progress import Window, window_of
from kdrt.errors import InvalidRequestError
from kdrt.images.control import ControlImage
from kdrt.images.input import read_maps
from kdrt.images.processors import find_processor
from kdrt.request.fields import Request
from kdrt.request.images_to_make import ImagesToMake
from kdrt.request.text_forms import number_text
from kdrt.sampling import AnyPlan

MAX_CONTROLS = 8
"""Of a request: each is a network of half the size of the UNet."""

_MAX_SCALE = 1000.0
"""Either way. Far larger ones make numbers that are not finite."""

_GREY = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601), as Pillow has it."""


@dataclass(frozen=True, kw_only=True)
class JobControl:
    """A control image with nothing left open, for B images.

    Attributes:
        component: what it is for.
        pixels: float32 ``[n, C, H, W]`` in [0, 1]; each is for B / n images in a row.
        scale: the factor on what is added.
        window: where in the run it works.
        guess: guess mode.
        fades: see `kdrt.denoise.controls.Control`.
    """

    component: ControlComponent
    pixels: Tensor
    scale: float
    window: Window
    guess: bool
    fades: bool


def given_controls(value: object) -> list[ControlImage]:
    """The ``control`` of a request as a list.

    Raises:
        InvalidRequestError: it is something else than control images, or too many.
    """
    listed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    each: list[ControlImage] = []
    for item in [] if value is None else listed:
        if not isinstance(item, ControlImage):
            raise InvalidRequestError(
                "control must be a kdrt.ControlImage or a list of them, such as "
                f"kdrt.ControlImage(image, scale=0.8), not {type(item).__name__}"
            )
        each.append(item)
    if len(each) > MAX_CONTROLS:
        raise InvalidRequestError(
            f"{len(each)} control images are too many: a request has at most {MAX_CONTROLS}"
        )
    return each


def resolve_controls(
    request: Request, manifest: Manifest, plan: AnyPlan, to_make: ImagesToMake
) -> tuple[JobControl, ...]:
    """The controls of a request that add anything, in an order of their own, so that requests with
    the same ones can share their evaluations.

    Args:
        request: complete.
        manifest: of the bundle, which names its controls.
        plan: of the run.
        to_make: the images.

    Raises:
        InvalidRequestError: the bundle has no such control, an image cannot be read, a number is
            out of range, they are asked for together with a deep cache, or there are none for
            ``guess_mode``.
    """
    given = given_controls(request["control"])
    if request["guess_mode"] and not given:
        raise InvalidRequestError(
            "guess_mode says how to use control, and there is none; give one, or leave guess_mode "
            "out"
        )
    if given and request["deep_cache"] is not None:
        raise InvalidRequestError(
            "deep_cache leaves out the layers that control acts on: give one of the two"
        )
    resolved = [
        _resolved(control, request["guess_mode"], manifest, plan, to_make) for control in given
    ]
    return tuple(
        sorted((each for each in resolved if each is not None), key=lambda each: each.component)
    )


def control_texts(request: Request, manifest: Manifest) -> tuple[str, ...]:
    """What is told of each control image that counts, as the web UI's extension tells it."""
    return tuple(
        ", ".join(
            [
                *([f"Module: {control.process}"] if control.process else []),
                f"Model: {_name(control, manifest)}",
                f"Weight: {number_text(float(control.scale))}",
                f"Guidance Start: {number_text(float(control.start))}",
                f"Guidance End: {number_text(float(control.end))}",
            ]
        )
        for control in given_controls(request["control"])
        if control.scale != 0
    )


def _resolved(
    control: ControlImage,
    guess_mode: bool,
    manifest: Manifest,
    plan: AnyPlan,
    to_make: ImagesToMake,
) -> JobControl | None:
    """None where it adds nothing."""
    name = _name(control, manifest)
    facts = manifest.controls[name]
    scale = check_number(
        "the scale of a control image", control.scale, _MAX_SCALE, minimum=-_MAX_SCALE
    )
    start = check_number("the start of a control image", control.start, 1)
    end = check_number("the end of a control image", control.end, 1)
    if not start < end:
        raise InvalidRequestError(
            f"a control image must start before it ends, and this one is from {start:g} to {end:g}"
        )
    process = None if control.process is None else find_processor(control.process)
    pixels = _read(control.image, to_make)
    window = window_of(plan, start, end)
    if scale == 0 or window[0] > window[1]:
        return None
    if process is not None:
        pixels = torch.stack([process(each) for each in pixels])
    is_network = facts.kind == "controlnet"
    prefix = CONTROL_COMPONENT if is_network else ADAPTER_COMPONENT
    return JobControl(
        component=ControlComponent(prefix + name, is_network),
        pixels=_in_channels(pixels, facts),
        scale=scale,
        window=window,
        guess=is_network and (guess_mode or facts.global_pool),
        fades=not facts.global_pool,
    )


def _read(image: object, to_make: ImagesToMake) -> Tensor:
    """Control images as float32 ``[n, 3, H, W]`` in [0, 1], each for B / n images in a row.

    Raises:
        InvalidRequestError: they are no images, or neither one for all nor one for each prompt.
    """
    pixels = read_maps("the image of control", image, *to_make.whole)
    if to_make.count % len(pixels):
        raise InvalidRequestError(
            f"{len(pixels)} images in a control image for {to_make.count} images: give one for "
            "all, or one for each prompt"
        )
    return to_make.parts_of(pixels)


def _name(control: ControlImage, manifest: Manifest) -> str:
    names = list(manifest.controls)
    if not names:
        raise InvalidRequestError(
            f"'{manifest.name}' has no ControlNet or T2I-Adapter; add one with `kdrt add "
            "controlnet BUNDLE SOURCE`"
        )
    if control.name is None:
        if len(names) > 1:
            raise InvalidRequestError(
                f"'{manifest.name}' has several controls, so each control image needs the name of "
                f"one: {', '.join(names)}"
            )
        return names[0]
    if not isinstance(control.name, str) or control.name not in names:
        raise InvalidRequestError(unknown_word("control", control.name, names))
    return control.name


def _in_channels(pixels: Tensor, facts: ControlFacts) -> Tensor:
    """The same as many channels as the control takes: grey for one."""
    if facts.channels == 3:
        return pixels
    if facts.channels == 1:
        return (pixels * torch.tensor(_GREY).view(3, 1, 1)).sum(1, keepdim=True)
    raise InvalidRequestError(
        f"this control takes images of {facts.channels} channels, and kdrt makes those of 1 or 3"
    )
