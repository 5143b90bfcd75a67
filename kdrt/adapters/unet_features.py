"""What a UNet can do beyond the plain one, and which UNet of a bundle can do what is asked for.

A bundle may hold several UNets. Each feature has inputs of its own, so that a request without it
runs a graph that does not pay for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from kdrt.bundle import Manifest
from kdrt.errors import InvalidRequestError
from kdrt_engines import EngineSpec

Features = tuple[str, ...]
"""Keys of `FEATURE_INPUTS`, in that order."""

FEATURE_INPUTS: Mapping[str, str] = MappingProxyType(
    {"ip-adapter": "ip_scale", "pag": "pag_rows", "control": "down_residual_0"}
)
"""By feature, the input by which a UNet with it is known."""

EXPORT_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "ip-adapter": "--ip-adapter FILE",
        "pag": "--variant pag",
        "control": "--controlnet SOURCE",
    }
)
"""By feature, what an export needs for a UNet with it."""

_BESIDE_PAG = {"ip-adapter": "an IP-Adapter", "control": "control"}
"""What no UNet has together with perturbed-attention guidance, as users call it."""


def features_of(unet: EngineSpec) -> Features:
    """The features of a UNet."""
    return tuple(name for name, tensor in FEATURE_INPUTS.items() if unet.has_input(tensor))


def unet_with(manifest: Manifest, features: Collection[str]) -> str:
    """The component that is the UNet with these features, and with the fewest others.

    Raises:
        InvalidRequestError: the bundle has none; the message says what to export, or that no UNet
            has all of them.
    """
    able = {
        component: found
        for component in _unets(manifest)
        if set(features) <= set(found := features_of(manifest.components[component].spec()))
    }
    if able:
        return min(able, key=lambda component: len(able[component]))
    others = [_BESIDE_PAG[feature] for feature in features if feature in _BESIDE_PAG]
    if "pag" in features and others:
        raise InvalidRequestError(
            f"pag_scale and {' and '.join(others)} do not go together, since no UNet has both; "
            "leave one of them out"
        )
    options = " ".join(EXPORT_OPTIONS[feature] for feature in features)
    added = ", or add it with `kdrt add controlnet`" if list(features) == ["control"] else ""
    raise InvalidRequestError(
        f"'{manifest.name}' has no UNet with {' and '.join(features)}; export it with "
        f"`{manifest.export_command} {options}`{added}"
    )


def _unets(manifest: Manifest) -> Iterator[str]:
    yield "unet"
    for parts in manifest.variants.values():
        if "unet" in parts:
            yield parts["unet"]
