"""The stages of an image, and which components each of them runs."""

from __future__ import annotations

from kdrt.bundle.components import (
    ADAPTER_COMPONENT,
    CONTROL_COMPONENT,
    SHALLOW_UNET,
    UPSCALER_COMPONENT,
)

_STAGES = {
    "unet": "unet",
    SHALLOW_UNET: "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "safety_checker": "vae",
}

_OF_UNET = ("unet-", CONTROL_COMPONENT, ADAPTER_COMPONENT)
"""How the names of others begin: other UNets, and what acts on them."""


def stage_of(component: str) -> str:
    """The stage that needs a component: ``text``, ``unet`` or ``vae``."""
    if component.startswith(UPSCALER_COMPONENT):
        return "vae"
    return "unet" if component.startswith(_OF_UNET) else _STAGES.get(component, "text")
