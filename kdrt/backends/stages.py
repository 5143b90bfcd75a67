"""The stages of an image, and which components each of them runs."""

from __future__ import annotations

from kdrt.bundle.components import SHALLOW_UNET

_STAGES = {
    "unet": "unet",
    SHALLOW_UNET: "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "safety_checker": "vae",
}


def stage_of(component: str) -> str:
    """The stage that needs a component: ``text``, ``unet`` or ``vae``."""
    return _STAGES.get(component, "text")
