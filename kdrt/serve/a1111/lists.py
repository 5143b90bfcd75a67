"""What there is to choose from, as the web UI lists it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kdrt.common.validation import did_you_mean
from kdrt.images.upscaling import UPSCALINGS, LatentUpscaling
from kdrt.request.web_ui import web_ui_schedule
from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt.serve.a1111.requests import WEB_UI_SCHEDULES
from kdrt.serve.errors import UnknownModelError
from kdrt.serve.model import ServedModel

_HASH = re.compile(r"\s*\[[0-9a-f]{6,64}\]$")
_SUFFIX = re.compile(r"\.(?:safetensors|ckpt)$")

EMPTY = {
    "sd-vae": "VAEs: each model has its own.",
    "sd-modules": "Forge's modules: there are none.",
    "hypernetworks": "Hypernetworks: there are none.",
    "face-restorers": "Face restorers: there are none.",
    "realesrgan-models": "Real-ESRGAN's models: there are none.",
    "prompt-styles": "Styles: there are none.",
    "script-info": "Scripts: there are none.",
}
"""Lists in which there is nothing, so that clients offer nothing of it."""


def samplers() -> list[dict[str, Any]]:
    """All samplers, by the web UI's names."""
    return [
        {
            "name": info.label,
            "aliases": [info.name, *info.aliases],
            "options": {"scheduler": web_ui_schedule("Automatic", info.name)},
        }
        for info in SAMPLERS.values()
    ]


def schedulers() -> list[dict[str, Any]]:
    """All schedules, by the web UI's names."""
    rows = [_scheduler("automatic", "Automatic", {})]
    for name, ours in WEB_UI_SCHEDULES.items():
        info = SCHEDULES[ours]
        label = "Uniform" if name == "uniform" else info.label
        rows.append(_scheduler(name, label, info.options))
    return rows


def _scheduler(name: str, label: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "aliases": None,
        "default_rho": options.get("rho", -1.0),
        "need_inner_model": False,
    }


def latent_upscale_modes() -> list[dict[str, Any]]:
    """Ways to enlarge latents, by the web UI's names."""
    return [
        {"name": each.label} for each in UPSCALINGS.values() if isinstance(each, LatentUpscaling)
    ]


def upscalers(served: Mapping[str, ServedModel]) -> list[dict[str, Any]]:
    """Ways to enlarge pixels, by the web UI's names, and the networks that do so of any model."""
    networks = {
        name: facts
        for model in served.values()
        for name, facts in model.bundle.manifest.upscalers.items()
    }
    return [
        {
            "name": each.label,
            "model_name": None,
            "model_path": None,
            "model_url": None,
            "scale": 4,
        }
        for each in UPSCALINGS.values()
        if not isinstance(each, LatentUpscaling)
    ] + [
        {
            "name": name,
            "model_name": facts.architecture,
            "model_path": None,
            "model_url": None,
            "scale": facts.scale,
        }
        for name, facts in networks.items()
    ]


def models(served: Mapping[str, ServedModel]) -> list[dict[str, Any]]:
    """The models that are served."""
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": name,
            "config": None,
        }
        for name in served
    ]


def loras(model: ServedModel) -> list[dict[str, Any]]:
    """The LoRAs that are registered for a model."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in model.loras]


def model_called(title: str, served: Mapping[str, ServedModel]) -> str:
    """The name of the model that a client calls by its name or title, with or without a hash.

    Raises:
        UnknownModelError: there is none.
    """
    plain = _SUFFIX.sub("", _HASH.sub("", title[:200]))
    for name in (title, plain):
        if name in served:
            return name
    raise UnknownModelError(
        f"no model {title[:80]!r} is served{did_you_mean(plain, served)}; "
        f"served: {', '.join(served)}",
        "sd_model_checkpoint",
    )
