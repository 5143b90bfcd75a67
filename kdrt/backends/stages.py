"""The stages of an image, and which components each of them runs."""

from __future__ import annotations

from kdrt.bundle.components import SHALLOW_UNET

_LATER = {
    "unet": "unet",
    SHALLOW_UNET: "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "safety_checker": "vae",
}


def stage_of(component: str) -> str:
    """The turn of a component: ``text``, ``unet`` or ``vae``."""
    return _LATER.get(component, "text")
