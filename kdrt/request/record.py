"""What an image's text tells of a request: everything that shaped the image.

Most fields are recorded under their own key, by :attr:`kdrt.request.field.Field.record`. Those that
web UIs write in their own way are below. :mod:`kdrt.request.recorded` reads it all back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from kdrt.common.literals import COMMA_BACKTRACK
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.errors import InvalidRequestError
from kdrt.images.upscaling import find_upscaler, upscaler_labels
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Request
from kdrt.request.grid import is_custom
from kdrt.request.snapshot import GIVEN, JobSnapshot
from kdrt.request.text_forms import IMAGE_SCALE, number_text, scalar_text
from kdrt.sampling import find_schedule, is_foreign
from kdrt.sampling.samplers import label_of

Value = str | int | float
"""Of a setting."""

CUSTOM = "Custom"
"""The schedule's label where the grid is the request's own."""

OTHER_SCHEDULE = "Schedule for other steps"
"""The key of the schedule that the request's own grid replaces, such as that of a recipe: it counts
where the image is made again with other steps."""

OWN_SAMPLER = "Sampler function"
"""The key that tells of a sampler which has no name."""

SAMPLER_OPTIONS = {
    "eta": "Eta",
    "s_churn": "Sigma churn",
    "s_noise": "Sigma noise",
    "s_tmax": "Sigma tmax",
    "s_tmin": "Sigma tmin",
    "solver_type": "Solver type",
}
SCHEDULE_OPTIONS = {
    "rho": "Schedule rho",
    "sigma_max": "Schedule max sigma",
    "sigma_min": "Schedule min sigma",
    "discard_penultimate": "Discard penultimate sigma",
}
"""The web UI's keys; other options are written as "Sampler …" and "Schedule …"."""

EMPHASIS = {"none": "None", "a1111": "Original", "a1111_no_norm": "No norm"}
"""The web UI's words for how a prompt is read."""

EXACT_PROMPT, EXACT_NEGATIVE = "Exact prompt", "Exact negative prompt"
"""Keys of prompts that the web UI's format cannot hold as they are, such as one with a line that
begins like a negative prompt."""

FREEU = ("FreeU b1", "FreeU b2", "FreeU s1", "FreeU s2")
CONTROL = "ControlNet "
"""Begins the keys of control images, which are numbered from 0."""

EMPTY_NEGATIVE = "Empty negative prompt"
"""The key that tells an empty negative prompt from none, where that is not the same."""

_ELSEWHERE = {
    *("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_weighting"),
    *("seed", "noise_seed", "width", "height", "steps", "schedule", "guidance_scale"),
}
"""What :mod:`kdrt.pipeline.metadata` tells, image by image."""


def sampler_label(snapshot: JobSnapshot) -> str:
    """The name of the sampler, as a web UI shows it."""
    if snapshot.own_sampler is not None:
        return snapshot.own_sampler
    sampler = cast(str, snapshot.request["sampler"])
    return sampler if is_foreign(sampler) else label_of(sampler, _sampler_options(snapshot))


def schedule_label(snapshot: JobSnapshot) -> str:
    """Likewise of the schedule."""
    request = snapshot.request
    return CUSTOM if is_custom(request) else find_schedule(request["schedule"]).label


def settings_of(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    """What is recorded of a request beside the prompts, seeds and first settings."""
    request = snapshot.request
    by_hand: Mapping[str, Callable[[], Iterator[tuple[str, Value]]]] = {
        "comma_backtrack": lambda: _backtrack(request),
        "clip_skip": lambda: _clip_skip(snapshot),
        "sampler": lambda: _own_sampler(snapshot),
        "sampler_options": lambda: _options(_sampler_options(snapshot), SAMPLER_OPTIONS, "Sampler"),
        "schedule_options": lambda: _schedule(request),
        "noise": lambda: _noise(request),
        "noise_options": lambda: iter(()),
        "freeu": lambda: _freeu(snapshot),
        "control": lambda: _controls(snapshot),
        "regions": lambda: _regions(snapshot),
        "region_base_weight": lambda: _base_weight(snapshot),
        "ip_adapter_scale": lambda: _image_prompt(request),
        "hires_strength": lambda: _hires(snapshot),
        "hires_upscaler": lambda: iter(()),
        "ip_adapter_masks": lambda: iter(()),
        "mask_image": lambda: iter(() if request["mask_image"] is None else [("Masked", "yes")]),
    }
    for name, field in FIELDS.items():
        if name in by_hand:
            yield from by_hand[name]()
        elif name not in _ELSEWHERE and not _means_nothing(field, request):
            yield from settings_of_field(field, request.get(name))


def settings_of_field(field: Field, value: Any) -> Iterator[tuple[str, Value]]:
    """One field under its own key, if it is recorded at all and is not its default."""
    if not field.record or value is None or _is_default(field, value):
        return
    if field.scalar is None and field.form is None:
        yield field.record, GIVEN
    elif field.form is not None:
        yield field.record, field.form.write(value)
    elif field.scalar is bool:
        yield field.record, "yes" if value else "no"
    else:
        yield field.record, value


def _means_nothing(field: Field, request: Request) -> bool:
    return bool(field.requires) and request.get(field.requires) is None


def _is_default(field: Field, value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and value == field.default


def _backtrack(request: Request) -> Iterator[tuple[str, Value]]:
    tokens = request["comma_backtrack"]
    if request["prompt_weighting"] != "none" and tokens != COMMA_BACKTRACK:
        yield "Comma backtrack", tokens


def _clip_skip(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    if not snapshot.clip_skip:
        return
    # Web UIs count the hidden state itself from the end, 1 the last.
    layer = snapshot.manifest.text_encoders[0].layer
    yield "Clip skip", snapshot.clip_skip - layer
    if layer != -1:
        yield "Skipped layers", snapshot.clip_skip


def _own_sampler(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    if snapshot.own_sampler is not None:
        yield OWN_SAMPLER, GIVEN


def _sampler_options(snapshot: JobSnapshot) -> Mapping[str, Any]:
    return snapshot.request["sampler_options"] or {}


def _options(
    options: Mapping[str, Any] | None, labels: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, Value]]:
    for name, value in sorted((options or {}).items()):
        key = labels.get(name, f"{prefix} {name.replace('_', ' ')}")
        yield key, value if type(value) in (int, float) else scalar_text(value)


def _schedule(request: Request) -> Iterator[tuple[str, Value]]:
    yield from _options(request["schedule_options"], SCHEDULE_OPTIONS, "Schedule")
    # Of no effect on this image, so it may be the name of none.
    if is_custom(request) and request["schedule"] != FIELDS["schedule"].default:
        with suppress(InvalidRequestError):
            yield OTHER_SCHEDULE, find_schedule(request["schedule"]).label


def _noise(request: Request) -> Iterator[tuple[str, Value]]:
    options = request["noise_options"] or {}
    if request["noise"] == "a1111":
        yield "RNG", str(options.get("source", "cpu")).upper()
        if options.get("eta_noise_seed_delta"):
            yield "ENSD", options["eta_noise_seed_delta"]
    elif request["noise"] != "per_image":
        yield "Noise", request["noise"]
        yield from _options(options, {}, "Noise")


def _freeu(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    return iter(()) if snapshot.freeu == FREEU_OFF else zip(FREEU, snapshot.freeu, strict=True)


def _controls(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    for number, text in enumerate(snapshot.controls):
        yield f"{CONTROL}{number}", text


def _regions(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    if snapshot.regions:
        told = (
            prompt if weight == 1 else f"{prompt} (weight {number_text(weight)})"
            for prompt, weight in snapshot.regions
        )
        yield FIELDS["regions"].record, " | ".join(told)


def _base_weight(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    if snapshot.regions:
        field = FIELDS["region_base_weight"]
        yield from settings_of_field(field, snapshot.request["region_base_weight"])


def _hires(snapshot: JobSnapshot) -> Iterator[tuple[str, Value]]:
    request, models = snapshot.request, snapshot.manifest.upscalers
    if request["hires_scale"] is not None:
        yield FIELDS["hires_strength"].record, request["hires_strength"]
        upscaler = find_upscaler(request["hires_upscaler"], models)
        yield FIELDS["hires_upscaler"].record, upscaler_labels(models)[upscaler]


def _image_prompt(request: Request) -> Iterator[tuple[str, Value]]:
    if request["ip_adapter_image"] is not None or request["ip_adapter_image_embeds"] is not None:
        scale = request["ip_adapter_scale"]
        yield "IP-Adapter scale", IMAGE_SCALE.write(scale) if isinstance(scale, Mapping) else scale
        if request["ip_adapter_masks"] is not None:
            yield "IP-Adapter masks", GIVEN
