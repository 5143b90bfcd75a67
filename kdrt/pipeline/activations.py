"""How much memory a network needs at least while it runs, beside its weights.

Only builders of engines know the whole of it. But of the networks of a latent-diffusion model some
tensors must exist at the same time whatever runs them, and at the sizes of images they are the
largest. Their shapes follow from the configurations that a bundle keeps:

- UNet: the output of every layer on the way down waits for its layer on the way up.
- VAE decoder, unless it runs in tiles: a residual block at full resolution holds its input, which
  it adds at the end, while its second convolution reads one tensor and writes another.
- ControlNets: their outputs, and the inputs of the UNet in which they are summed.
- text encoders: all hidden states are outputs.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from kdrt.bundle import Bundle, config_file
from kdrt.bundle.components import is_residual
from kdrt_engines import EngineSpec
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.regular_files import read_regular

_CONFIG_BYTES = 2**20
_LARGEST = 2**16
"""Of the numbers in a configuration, which may come from a stranger."""


def least_activations(bundle: Bundle, component: str, dtype: str) -> int | None:
    """Bytes for one image of the model's default size, with guidance; None if the bundle does not
    say enough.

    Args:
        bundle: an opened bundle.
        component: a name in its manifest.
        dtype: what is computed in, a key of `kdrt_engines.dtypes.DTYPES`.
    """
    elements = _elements(bundle, component)
    return None if elements is None else elements * DTYPES[dtype].size


class ImageActivations:
    """The same without guidance at any size; the configurations are read once.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._scale = bundle.manifest.latents.scale
        self._components = bundle.manifest.components
        self._configs = {name: _config(bundle, name) for name in ("unet", "vae")}

    def unet(self, height: int, width: int) -> int:
        """Bytes for an image of this size in pixels; 0 if the bundle does not say enough."""
        found = _unet(self._configs["unet"], height // self._scale, width // self._scale)
        return (found or 0) * self._item_size("unet")

    def residuals(self, unet: EngineSpec, height: int, width: int) -> int:
        """Bytes of what ControlNets and T2I-Adapters add to a UNet for such an image."""
        dims = {"B": 1, "h": height // self._scale, "w": width // self._scale}
        return sum(
            prod(tensor.resolve(dims)) * DTYPES[tensor.dtype].size
            for tensor in unet.inputs
            if is_residual(tensor.name)
        )

    def vae_decoder(self, height: int, width: int) -> int:
        """Likewise, for a decoder that does not run in tiles."""
        return (_vae_decoder(self._configs["vae"], height, width) or 0) * self._item_size(
            "vae_decoder"
        )

    def _item_size(self, component: str) -> int:
        tensors = self._components.get(component)
        if tensors is None:  # a pipeline may be made of engines that the bundle does not have
            return 0
        return min(DTYPES[each[0].dtype].size for each in (tensors.inputs, tensors.outputs))


def _elements(bundle: Bundle, component: str) -> int | None:
    manifest = bundle.manifest
    facts = manifest.latents
    height, width = facts.default_height, facts.default_width
    if component == "unet":
        one = _unet(_config(bundle, "unet"), height // facts.scale, width // facts.scale)
        return None if one is None else 2 * one  # guidance doubles the batch
    if component == "vae_decoder":
        return _vae_decoder(_config(bundle, "vae"), height, width)
    for text in manifest.text_encoders:
        if text.component == component:
            # The prompt and the negative one.
            return 2 * (text.layers + 1) * text.max_length * text.hidden_size
    return None


def _unet(config: dict[str, Any], height: int, width: int) -> int | None:
    """Elements for latents of this size."""
    widths, layers = _channels(config), config.get("layers_per_block")
    if widths is None:
        return None
    each = layers if isinstance(layers, list) else [layers] * len(widths)
    if len(each) != len(widths) or not all(map(_is_count, each)):
        return None
    total = widths[0] * height * width  # of the first convolution
    for level, (channels, count) in enumerate(zip(widths, each, strict=True)):
        total += count * channels * (height >> level) * (width >> level)
        if level + 1 < len(widths):  # the convolution that halves the size
            total += channels * (height >> level + 1) * (width >> level + 1)
    return total


def _vae_decoder(config: dict[str, Any], height: int, width: int) -> int | None:
    """Elements for an image of this size."""
    widths = _channels(config)
    if widths is None:
        return None
    outer, inner = widths[0], widths[min(1, len(widths) - 1)]
    return (inner + 2 * outer) * height * width


def _channels(config: dict[str, Any]) -> list[int] | None:
    found = config.get("block_out_channels")
    return found if isinstance(found, list) and found and all(map(_is_count, found)) else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST


def _config(bundle: Bundle, network: str) -> dict[str, Any]:
    """The configuration of a network; empty if the bundle has none that can be read."""
    try:
        found = json.loads(read_regular(bundle.file(config_file(network)), _CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
