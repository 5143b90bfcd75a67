"""What an image's text tells of a request: everything that shaped the image.

Most fields are told under their own key, by :attr:`kdrt.request.field.Field.record`. Those that web
UIs tell in their own way are below. :mod:`kdrt.request.recorded` reads it all back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdrt.bundle import Manifest
from kdrt.common.literals import COMMA_BACKTRACK
from kdrt.denoise.freeu import FREEU_OFF, FreeU
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Request
from kdrt.request.grid import is_custom
from kdrt.request.text_forms import scalar_text
from kdrt.sampling import find_schedule, is_foreign
from kdrt.sampling.samplers import label_of

if TYPE_CHECKING:
    from kdrt.request.job import PromptJob, Value

CUSTOM = "Custom"
"""The schedule's label where the grid is the request's own."""

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
"""The web UI's keys; other options are told as "Sampler …" and "Schedule …"."""

EMPHASIS = {"none": "None", "a1111": "Original", "a1111_no_norm": "No norm"}
"""The web UI's words for how a prompt is read."""

EXACT_PROMPT, EXACT_NEGATIVE = "Exact prompt", "Exact negative prompt"
"""Keys of prompts that the web UI's format cannot hold as they are, such as one with a line that
begins like a negative prompt."""

FREEU = ("FreeU b1", "FreeU b2", "FreeU s1", "FreeU s2")
EMPTY_NEGATIVE = "Empty negative prompt"
"""The key that tells an empty negative prompt from none, where that is not the same."""

_ELSEWHERE = {
    *("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_weighting"),
    *("seed", "noise_seed", "width", "height", "steps", "schedule", "guidance_scale"),
}
"""What :mod:`kdrt.pipeline.metadata` tells, image by image."""


def sampler_label(request: Request) -> str:
    """The name of a complete request's sampler, as a web UI shows it."""
    sampler = request["sampler"]
    if callable(sampler):
        return getattr(sampler, "__name__", type(sampler).__name__)
    if is_foreign(sampler):
        return sampler
    return label_of(sampler, request["sampler_options"] or {})


def schedule_label(request: Request) -> str:
    """Likewise of its schedule."""
    return CUSTOM if is_custom(request) else find_schedule(request["schedule"]).label


def settings_of(
    request: Request, prompts: PromptJob, freeu: FreeU, manifest: Manifest
) -> tuple[tuple[str, Value], ...]:
    """What is told of a complete request beside the prompts, seeds and first settings."""
    by_hand: Mapping[str, Callable[[], Iterator[tuple[str, Value]]]] = {
        "comma_backtrack": lambda: _backtrack(prompts),
        "clip_skip": lambda: _clip_skip(prompts, manifest),
        "sampler": lambda: _own_sampler(request),
        "sampler_options": lambda: _options(request["sampler_options"], SAMPLER_OPTIONS, "Sampler"),
        "schedule_options": lambda: _options(
            request["schedule_options"], SCHEDULE_OPTIONS, "Schedule"
        ),
        "noise": lambda: _noise(request),
        "noise_options": lambda: iter(()),
        "freeu": lambda: _freeu(freeu),
        "ip_adapter_scale": lambda: _image_prompt(request),
        "mask_image": lambda: iter(() if request["mask_image"] is None else [("Masked", "yes")]),
    }
    told: list[tuple[str, Value]] = []
    for name, field in FIELDS.items():
        if name in by_hand:
            told.extend(by_hand[name]())
        elif name not in _ELSEWHERE:
            told.extend(tell(field, request.get(name)))
    return tuple(told)


def tell(field: Field, value: Any) -> Iterator[tuple[str, Value]]:
    """One field under its own key, if it is told at all and is not its default."""
    if not field.record or value is None or _is_default(field, value):
        return
    if field.scalar is None and field.form is None:
        yield field.record, "given"
    elif field.form is not None:
        yield field.record, field.form.write(value)
    elif field.scalar is bool:
        yield field.record, "yes" if value else "no"
    else:
        yield field.record, value


def _is_default(field: Field, value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and value == field.default


def _backtrack(prompts: PromptJob) -> Iterator[tuple[str, Value]]:
    weighting = prompts.weighting
    if weighting.mode != "none" and weighting.comma_backtrack != COMMA_BACKTRACK:
        yield "Comma backtrack", weighting.comma_backtrack


def _clip_skip(prompts: PromptJob, manifest: Manifest) -> Iterator[tuple[str, Value]]:
    if not prompts.clip_skip:
        return
    # Web UIs count the hidden state itself from the end, 1 the last.
    layer = manifest.text_encoders[0].layer
    yield "Clip skip", prompts.clip_skip - layer
    if layer != -1:
        yield "Skipped layers", prompts.clip_skip


def _own_sampler(request: Request) -> Iterator[tuple[str, Value]]:
    if callable(request["sampler"]):
        yield OWN_SAMPLER, "given"


def _options(
    options: Mapping[str, Any] | None, labels: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, Value]]:
    for name, value in sorted((options or {}).items()):
        key = labels.get(name, f"{prefix} {name.replace('_', ' ')}")
        yield key, value if type(value) in (int, float) else scalar_text(value)


def _noise(request: Request) -> Iterator[tuple[str, Value]]:
    options = request["noise_options"] or {}
    if request["noise"] == "a1111":
        yield "RNG", str(options.get("source", "cpu")).upper()
        if options.get("eta_noise_seed_delta"):
            yield "ENSD", options["eta_noise_seed_delta"]
    elif request["noise"] != "per_image":
        yield "Noise", request["noise"]
        yield from _options(options, {}, "Noise")


def _freeu(freeu: FreeU) -> Iterator[tuple[str, Value]]:
    return iter(()) if freeu == FREEU_OFF else zip(FREEU, freeu, strict=True)


def _image_prompt(request: Request) -> Iterator[tuple[str, Value]]:
    if request["ip_adapter_image"] is not None or request["ip_adapter_image_embeds"] is not None:
        yield "IP-Adapter scale", request["ip_adapter_scale"]
