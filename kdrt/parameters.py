"""The text that travels with a picture: how it was made, in AUTOMATIC1111's format.

    a red circle
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 64x64, …

Web UIs and galleries read it. Most of them split the last line at every comma and colon, so no
value may hold one: what the format has no key for gets a flat key of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kdrt._version import __version__
from kdrt.adapters.lora import Lora
from kdrt.bundle import Manifest
from kdrt.checks import shown
from kdrt.denoiser import FREEU_OFF
from kdrt.grid import is_custom
from kdrt.prompt.weighting import COMMA_BACKTRACK, has_emphasis
from kdrt.request import Job
from kdrt.sampling import ForeignPlan, find_schedule
from kdrt.sampling.samplers import label_of

Value = str | int | float

_NEGATIVE = "Negative prompt: "
_OPTION_LABELS = {
    "eta": "Eta",
    "s_churn": "Sigma churn",
    "s_noise": "Sigma noise",
    "s_tmax": "Sigma tmax",
    "s_tmin": "Sigma tmin",
    "solver_type": "Solver type",
}
_SCHEDULE_LABELS = {
    "rho": "Schedule rho",
    "sigma_max": "Schedule max sigma",
    "sigma_min": "Schedule min sigma",
    "discard_penultimate": "Discard penultimate sigma",
}
_EMPHASIS = {"none": "None", "a1111_no_norm": "No norm"}
"""The web UI's words for how the prompt is read; it leaves out its own default."""
_TEMPLATES = ("Template", "Negative Template")
"""What the web UI's extension for dynamic prompts writes below the settings."""

_JSON = re.compile(r'[\ufeff\s\[]*+\{\s*+"[^"]*+"\s*+:')
"""How JSON with keys begins, and no prompt."""
_SPACE = re.compile(r"\s*")
_WRONG_JSON = 10
"""How many values may look like JSON and be none. Each is read to its end, so that without a limit
the time grows with the square of the text."""


@dataclass(frozen=True)
class Parameters:
    """How one picture was made.

    ``sampler`` and ``schedule`` are the names a web UI shows; ``negative_prompt`` is None where
    there was none at all. ``extras`` are further keys and values of the last line.
    """

    prompt: str
    negative_prompt: str | None
    steps: int
    sampler: str
    schedule: str
    guidance_scale: float
    seed: int
    width: int
    height: int
    model: str
    extras: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        """The text, as it is stored in a picture."""
        settings: list[tuple[str, Value]] = [
            ("Steps", self.steps),
            ("Sampler", self.sampler),
            ("Schedule type", self.schedule),
            ("CFG scale", self.guidance_scale),
            ("Seed", self.seed),
            ("Size", f"{self.width}x{self.height}"),
            ("Model", self.model),
            *self.extras,
            ("Version", f"kdrt {__version__}"),
        ]
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(_NEGATIVE + self.negative_prompt)
        lines.append(", ".join(f"{key}: {_flat(value)}" for key, value in settings))
        return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, str]:
    """Read such a text, ours or a web UI's: its settings by key, with the prompts under
    ``"Prompt"`` and ``"Negative prompt"``. Keys that are not there are not in the result.

    Values may be quoted, or JSON as the web UI's extensions write it. A text that is JSON as a
    whole is another program's: its keys are given as they are, but for a prompt that is no text.
    Of other JSON, or what is left of some, nothing is given.
    """
    values = json_object(text)
    if values is not None:
        return {
            key: told(value)
            for key, value in values.items()
            if isinstance(value, str) or key.lower() != "prompt"
        }
    lines = text.strip().replace("\r\n", "\n").split("\n")
    end, settings = _settings_line(lines)
    if not settings and _JSON.match(text):
        return {}
    starts = (i for i in range(end) if lines[i].startswith(_NEGATIVE.strip()))
    split = next(starts, end)
    result = {"Prompt": "\n".join(lines[:split])}
    if split < end:
        negative = "\n".join(lines[split:end])
        result["Negative prompt"] = negative.removeprefix(_NEGATIVE.strip()).strip()
    return result | settings | _templates(lines[end + 1 :])


def json_object(text: str) -> dict[str, Any] | None:
    """The object that ``text`` is in JSON; None if it is anything else."""
    text = text.lstrip("\ufeff \t\r\n")
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def told(value: object) -> str:
    """A value of JSON as text: a string itself, the others as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="replace").decode()  # JSON can hold halves of characters


def _settings_line(lines: Sequence[str]) -> tuple[int, dict[str, str]]:
    """The line of the settings, and what it says; the end, and nothing, where there is none."""
    for index in range(len(lines)):
        is_last = index == len(lines) - 1
        if not is_last and not lines[index + 1].startswith(tuple(f"{t}:" for t in _TEMPLATES)):
            continue
        settings = dict(_settings(lines[index])) if "Steps:" in lines[index] else {}
        if settings.get("Steps", "").isdecimal():
            return index, settings
    return len(lines), {}


def _templates(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        key, colon, rest = line.partition(":")
        if colon and key in _TEMPLATES:
            current = found.setdefault(key, [])
            current.append(rest.strip())
        else:
            current.append(line)
    return {key: "\n".join(part) for key, part in found.items()}


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """Keys and values between commas, in one pass."""
    place, colon = 0, line.find(":")
    decoder, failures = json.JSONDecoder(), 0
    while colon >= 0:
        key = line[max(place, line.rfind(",", place, colon) + 1) : colon].strip()
        start = _SPACE.match(line, colon + 1).end()  # type: ignore[union-attr]
        end = value = None
        if line[start : start + 1] in ('"', "{", "[") and failures < _WRONG_JSON:
            with suppress(ValueError, RecursionError):
                decoded, stop = decoder.raw_decode(line, start)
                after = _SPACE.match(line, stop).end()  # type: ignore[union-attr]
                if line[after : after + 1] in ("", ","):
                    value, end = decoded if isinstance(decoded, str) else line[start:stop], after
            failures += end is None
        if value is None or end is None:
            comma = line.find(",", start)
            end = len(line) if comma < 0 else comma
            value = line[start:end].strip()
        if key and '"' not in key:
            yield key, told(value)
        place = end + 1
        colon = line.find(":", place)


def parameters_of(job: Job, manifest: Manifest, loras: Iterable[Lora] = ()) -> list[Parameters]:
    """How each picture of a job is made, with the LoRAs at work."""
    active = [lora for lora in loras if lora.is_active]
    negatives = job.negatives[0] if job.negatives else (None,) * len(job.seeds)
    custom = is_custom(job.request)
    return [
        Parameters(
            prompt=prompt,
            negative_prompt=negative,
            steps=job.plan.steps if custom else job.request.steps,
            sampler=_sampler_label(job),
            schedule="Custom" if custom else find_schedule(job.request.schedule).label,
            guidance_scale=job.guidance_scale,
            seed=seed,
            width=job.width,
            height=job.height,
            model=manifest.name,
            extras=(*_extras(job, manifest, index), *_lora_extras(active)),
        )
        for index, (prompt, negative, seed) in enumerate(
            zip(job.prompts[0], negatives, job.seeds, strict=True)
        )
    ]


def _extras(job: Job, manifest: Manifest, index: int) -> Iterator[tuple[str, Value]]:
    request = job.request
    if job.positive is not None:
        yield "Prompt embeddings", "given"
    if job.negative is not None:
        yield "Negative embeddings", "given"
    texts = [column[index] for column in (*job.prompts, *(job.negatives or ()))]
    if job.weighting.mode in _EMPHASIS and any(map(has_emphasis, texts)):
        yield "Emphasis", _EMPHASIS[job.weighting.mode]
    if job.weighting.mode != "none" and job.weighting.comma_backtrack != COMMA_BACKTRACK:
        yield "Comma backtrack", job.weighting.comma_backtrack
    if job.clip_skip:
        # Web UIs count the hidden state itself from the end, 1 the last.
        yield "Clip skip", job.clip_skip - manifest.text_encoders[0].layer
    for option, value in (request.sampler_options or {}).items():
        yield _OPTION_LABELS.get(option, f"Sampler {option}"), value
    for option, value in (request.schedule_options or {}).items():
        yield _SCHEDULE_LABELS.get(option, f"Schedule {option.replace('_', ' ')}"), value
    yield from _noise_extras(job, index)
    if request.strength is not None:
        yield "Denoising strength", request.strength
    if request.denoising_start is not None:
        yield "Denoising start", request.denoising_start
    if request.denoising_end is not None:
        yield "Denoising end", request.denoising_end
    if is_custom(request):
        yield "Sigmas", " ".join(f"{sigma:.6g}" for sigma in job.plan.sigmas)
    if request.guidance_rescale:
        yield "Guidance rescale", request.guidance_rescale
    if job.shortcuts.guidance_interval is not None:
        low, high = job.shortcuts.guidance_interval
        yield "Guidance interval", f"{low:g} to {high:g}"
    if job.shortcuts.deep_cache is not None:
        yield "Deep cache", job.shortcuts.deep_cache
    if job.freeu != FREEU_OFF:
        for name, value in zip(("b1", "b2", "s1", "s2"), job.freeu, strict=True):
            yield f"FreeU {name}", value
    if request.has_image_prompt:
        yield "IP-Adapter scale", request.ip_adapter_scale
    for name in request.sizes.given():
        first, second = getattr(request.sizes, name)
        yield name.replace("_", " ").capitalize(), f"{first}x{second}"
    if request.aesthetic_score is not None:
        yield "Aesthetic score", request.aesthetic_score
    if request.negative_aesthetic_score is not None:
        yield "Negative aesthetic score", request.negative_aesthetic_score
    if request.mask_image is not None:
        yield "Masked", "yes"
    if request.latents is not None:
        yield "Latents", "given"
    if request.prompt_2 is not None:
        yield "Prompt 2", job.prompts[-1][index]
    if request.negative_prompt_2 is not None and job.negatives:
        yield "Negative prompt 2", job.negatives[-1][index]


def _lora_extras(loras: Sequence[Lora]) -> Iterator[tuple[str, Value]]:
    """The web UI writes scales into the prompt; here they are a setting like any other."""
    if loras:
        yield "Lora hashes", ", ".join(f"{lora.name}: {lora.file.sha256[:12]}" for lora in loras)
        yield "Lora weights", ", ".join(f"{lora.name}: {lora.told()}" for lora in loras)


def _noise_extras(job: Job, index: int) -> Iterator[tuple[str, Value]]:
    request = job.request
    options = request.noise_options or {}
    if request.noise == "a1111":
        yield "RNG", str(options.get("source", "cpu")).upper()
        if options.get("eta_noise_seed_delta"):
            yield "ENSD", options["eta_noise_seed_delta"]
    elif request.noise != "per_image":
        yield "Noise", request.noise
    if job.noise_seeds is not None:
        yield "Noise seed", job.noise_seeds[index]


def _sampler_label(job: Job) -> str:
    if isinstance(job.plan, ForeignPlan):
        return job.plan.sampler
    return label_of(str(job.request.sampler), job.request.sampler_options or {})


def _flat(value: Value) -> str:
    """A value as it can stand between commas. Second prompts are sentences: like the web UI we
    quote those, for readers that understand quotes."""
    text = format(value, ".10g") if isinstance(value, float) else value
    # Options of foreign samplers may be anything.
    text = text if isinstance(text, str) else shown(text)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text
