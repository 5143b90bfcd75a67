"""Which features of the UNet a request needs."""

from __future__ import annotations

from numbers import Real

from kdrt.adapters.unet_features import FEATURE_INPUTS, Features
from kdrt.common.validation import finite_or_none
from kdrt.request.controls import given_controls
from kdrt.request.fields import Request


def unet_features(request: Request) -> Features:
    """The features that a request, complete or not, needs, in the order of
    `kdrt.adapters.unet_features.FEATURE_INPUTS`."""
    names = ("ip_adapter_image", "ip_adapter_image_embeds")
    has_image = any(request.get(name) is not None for name in names)
    pag_scale = request.get("pag_scale")
    # What is no number is refused later.
    needs = {
        "ip-adapter": has_image,
        "pag": isinstance(pag_scale, Real) and pag_scale > 0,
        "control": any(
            finite_or_none(each.scale) != 0 for each in given_controls(request.get("control"))
        ),
    }
    return tuple(name for name in FEATURE_INPUTS if needs.get(name))
