"""Which features of the UNet a request needs."""

from __future__ import annotations

from kdrt.adapters.unet_features import Features
from kdrt.request.fields import Request


def unet_features(request: Request) -> Features:
    """The features that a request, complete or not, needs, in the order of
    `kdrt.adapters.unet_features.FEATURE_INPUTS`."""
    names = ("ip_adapter_image", "ip_adapter_image_embeds")
    has_image = any(request.get(name) is not None for name in names)
    return ("ip-adapter",) if has_image else ()
