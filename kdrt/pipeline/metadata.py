"""The text that travels with an image: how it was made, in AUTOMATIC1111's format.

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
from dataclasses import dataclass

from kdrt._version import __version__
from kdrt.adapters.lora import Lora
from kdrt.bundle import Manifest
from kdrt.images.infotext import parse_infotext
from kdrt.prompt.weighting import has_emphasis
from kdrt.request.job import Job, Value
from kdrt.request.record import EMPHASIS, EMPTY_NEGATIVE, EXACT_NEGATIVE, EXACT_PROMPT
from kdrt.request.text_forms import number_text

_NEGATIVE = "Negative prompt: "


@dataclass(frozen=True)
class Infotext:
    """How one image was made.

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
        """The text, as it is stored in an image."""
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


def infotexts_of(job: Job, manifest: Manifest, loras: Iterable[Lora] = ()) -> list[Infotext]:
    """How each image of a job is made, with the LoRAs at work."""
    active = [lora for lora in loras if lora.is_active]
    return [_infotext(job, manifest, active, index) for index in range(len(job.seeds))]


def _infotext(job: Job, manifest: Manifest, loras: Sequence[Lora], index: int) -> Infotext:
    prompt = job.prompts[0][index]
    negative = job.negatives[0][index] if job.negatives else None
    return Infotext(
        prompt=prompt,
        negative_prompt=negative,
        steps=job.steps,
        sampler=job.sampler_label,
        schedule=job.schedule_label,
        guidance_scale=job.guidance_scale,
        seed=job.seeds[index],
        width=job.width,
        height=job.height,
        model=manifest.name,
        extras=(
            *_exact_prompts(prompt, negative),
            *_prompt_extras(job, manifest, index),
            *job.settings,
            *_lora_extras(loras),
        ),
    )


def _exact_prompts(prompt: str, negative: str | None) -> Iterator[tuple[str, Value]]:
    """Those that would be read as something else."""
    text = "\n".join([prompt, *([_NEGATIVE + negative] if negative else []), "Steps: 1"])
    found = parse_infotext(text)
    if (found.get("Prompt"), found.get("Negative prompt")) != (prompt, negative or None):
        yield EXACT_PROMPT, prompt
        if negative:
            yield EXACT_NEGATIVE, negative


def _prompt_extras(job: Job, manifest: Manifest, index: int) -> Iterator[tuple[str, Value]]:
    if job.negatives and not job.negatives[0][index] and manifest.zeros_for_empty_negative:
        yield EMPTY_NEGATIVE, "yes"
    if job.prompts[-1][index] != job.prompts[0][index]:
        yield "Prompt 2", job.prompts[-1][index]
    if job.negatives and job.negatives[-1][index] != job.negatives[0][index]:
        yield "Negative prompt 2", job.negatives[-1][index]
    texts = [column[index] for column in (*job.prompts, *(job.negatives or ()))]
    # Read as text, a prompt without emphasis is what it is in the web UI.
    if job.weighting.mode != "none" or any(map(has_emphasis, texts)):
        yield "Emphasis", EMPHASIS[job.weighting.mode]
    if job.noise_seeds is not None:
        yield "Noise seed", job.noise_seeds[index]


def _lora_extras(loras: Sequence[Lora]) -> Iterator[tuple[str, Value]]:
    """The web UI writes scales into the prompt; here they are a setting like any other."""
    if loras:
        yield "Lora hashes", ", ".join(f"{lora.name}: {lora.file.sha256[:12]}" for lora in loras)
        yield "Lora weights", ", ".join(f"{lora.name}: {lora.told()}" for lora in loras)


def _flat(value: Value) -> str:
    """A value as it can stand between commas. Second prompts are sentences: like the web UI we
    quote those, for readers that understand quotes."""
    text = number_text(value) if isinstance(value, float) else str(value)
    is_plain = text == text.strip() and not re.search(r'[,:\r\n"{[]', text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
