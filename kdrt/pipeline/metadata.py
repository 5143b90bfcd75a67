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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdrt._version import __version__
from kdrt.images.infotext import parse_infotext
from kdrt.prompt.weighting import has_emphasis
from kdrt.request.record import (
    EMPHASIS,
    EMPTY_NEGATIVE,
    EXACT_NEGATIVE,
    EXACT_PROMPT,
    Value,
    sampler_label,
    schedule_label,
    settings_of,
)
from kdrt.request.snapshot import JobSnapshot
from kdrt.request.text_forms import number_text

if TYPE_CHECKING:
    from kdrt.adapters.lora import Lora

Settings = tuple[tuple[str, Value], ...]
"""Keys and values of an infotext's last line."""

_NEGATIVE = "Negative prompt: "


@dataclass(frozen=True)
class Infotext:
    """How one image was made.

    ``sampler`` and ``schedule`` are the names that a web UI shows. ``negative_prompt`` is None if
    there was none at all. ``width`` and ``height`` are in pixels. ``extras`` are further keys and
    values of the last line.
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
    extras: Settings = ()

    def __str__(self) -> str:
        """The text as it is stored in an image."""
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


def infotexts_of(snapshot: JobSnapshot, lora_settings: Settings = ()) -> list[Infotext]:
    """How each image of a job is made, with the :func:`lora_settings_of` those at work."""
    settings = (*settings_of(snapshot), *lora_settings)
    return [_infotext(snapshot, settings, index) for index in range(len(snapshot.seeds))]


def lora_settings_of(loras: Iterable[Lora]) -> Settings:
    """What is told of LoRAs. The web UI writes scales into the prompt; here they are a setting like
    any other."""
    active = [lora for lora in loras if lora.is_active]
    if not active:
        return ()
    return (
        ("Lora hashes", ", ".join(f"{lora.name}: {lora.file.sha256[:12]}" for lora in active)),
        ("Lora weights", ", ".join(f"{lora.name}: {lora.scale_text()}" for lora in active)),
    )


def _infotext(snapshot: JobSnapshot, settings: Settings, index: int) -> Infotext:
    prompt = snapshot.prompts[0][index]
    negative = snapshot.negatives[0][index] if snapshot.negatives else None
    return Infotext(
        prompt=prompt,
        negative_prompt=negative,
        steps=snapshot.steps,
        sampler=sampler_label(snapshot),
        schedule=schedule_label(snapshot),
        guidance_scale=snapshot.guidance_scale,
        seed=snapshot.seeds[index],
        width=snapshot.width,
        height=snapshot.height,
        model=snapshot.manifest.name,
        extras=(
            *_exact_prompts(prompt, negative),
            *_prompt_extras(snapshot, index),
            *settings,
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


def _prompt_extras(snapshot: JobSnapshot, index: int) -> Iterator[tuple[str, Value]]:
    prompts, negatives = snapshot.prompts, snapshot.negatives
    if negatives and not negatives[0][index] and snapshot.manifest.zeros_for_empty_negative:
        yield EMPTY_NEGATIVE, "yes"
    if prompts[-1][index] != prompts[0][index]:
        yield "Prompt 2", prompts[-1][index]
    if negatives and negatives[-1][index] != negatives[0][index]:
        yield "Negative prompt 2", negatives[-1][index]
    texts = [column[index] for column in (*prompts, *(negatives or ()))]
    mode = snapshot.request["prompt_weighting"]
    # Read as text, a prompt without emphasis is what it is in the web UI.
    if mode != "none" or any(map(has_emphasis, texts)):
        yield "Emphasis", EMPHASIS[mode]
    if snapshot.noise_seeds is not None:
        yield "Noise seed", snapshot.noise_seeds[index]


def _flat(value: Value) -> str:
    """A value as it can stand between commas. Second prompts are sentences: like the web UI we
    quote those, for readers that understand quotes."""
    text = number_text(value) if isinstance(value, float) else str(value)
    is_plain = text == text.strip() and not re.search(r'[,:\r\n"{[]', text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
