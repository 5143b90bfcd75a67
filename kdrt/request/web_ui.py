"""What other programs' settings mean here: their defaults, and their noise."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kdrt.errors import InvalidRequestError
from kdrt.sampling import split_label
from kdrt.sampling.seed_numbers import SEEDS

OTHER_PROGRAMS = ("ComfyUI", "InvokeAI", "NovelAI", "Fooocus")
"""Those with a format of their own; all others keep the web UI's."""

_AUTOMATIC = {
    "dpm_2": "karras",
    "dpm_2_ancestral": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2s_ancestral": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpmpp_sde": "karras",
    "restart": "karras",
}
"""The AUTOMATIC1111 web UI's "Automatic", by sampler; it is "Uniform" for the others."""


def web_ui_schedule(label: str | None, sampler: str | None) -> str | None:
    """The schedule that a web UI's label means, or None if the sampler's label names it."""
    name, schedule = _split(sampler)
    if label is None:  # versions before 1.9: what the sampler's label says
        return None if schedule else "normal"
    return _AUTOMATIC.get(name, "normal") if label == "Automatic" else label


def web_ui_noise(
    settings: Mapping[str, str], program: str, sampler: str | None
) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    """The noise that made another program's image: our mode and its options, and what of the
    settings cannot be had here."""
    name, _ = _split(sampler)
    if name == "dpm_adaptive":
        return None, {}, {"RNG": "this sampler draws its own noise"}
    if program == "ComfyUI":
        return "comfyui", {}, {}
    if program in OTHER_PROGRAMS or "Sampler" not in settings:
        return None, {}, {}
    source = settings.get("RNG", "GPU").upper()
    options: dict[str, Any] = {"source": "cpu" if source == "CPU" else "nv"}
    lost = {}
    if options["source"] == "nv" and name.startswith("dpmpp_") and "sde" in name:
        # A Brownian tree on a GPU, which nobody emulates.
        options["source"], lost["RNG"] = "cpu", source
    with suppress(ValueError):
        if delta := int(settings.get("ENSD", "0")) % SEEDS:
            options["eta_noise_seed_delta"] = delta
    return "a1111", options, lost


def _split(sampler: str | None) -> tuple[str, str | None]:
    with suppress(InvalidRequestError):
        if sampler is not None:
            name, _, schedule = split_label(sampler)
            return name, schedule
    return "", None
