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
from kdrt.common.validation import excerpt
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.prompt.weighting import COMMA_BACKTRACK, has_emphasis
from kdrt.request.grid import is_custom
from kdrt.request.request import Job
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
    negatives = job.negatives[0] if job.negatives else (None,) * len(job.seeds)
    custom = is_custom(job.request)
    return [
        Infotext(
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
    text = text if isinstance(text, str) else excerpt(text)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text
