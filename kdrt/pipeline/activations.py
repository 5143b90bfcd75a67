"""How much memory a network needs at least while it runs, beside its weights.

Only builders of engines know the whole of it. But of the networks of a latent-diffusion model some
tensors must exist at the same time whatever runs them, and at the sizes of images they are the
largest. Their shapes follow from the configurations that a bundle keeps:

- UNet: the output of every layer on the way down waits for its layer on the way up.
- VAE decoder, unless it runs in tiles: a residual block at full resolution holds its input, which
  it adds at the end, while its second convolution reads one tensor and writes another.
- text encoders: all hidden states are outputs.
"""

from __future__ import annotations

import json
from typing import Any

from kdrt.bundle import Bundle, Manifest, config_file
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


def _elements(bundle: Bundle, component: str) -> int | None:
    manifest = bundle.manifest
    if component == "unet":
        return _unet(_config(bundle, "unet"), manifest)
    if component == "vae_decoder":
        return _vae_decoder(_config(bundle, "vae"), manifest)
    for facts in manifest.text_encoders:
        if facts.component == component:
            # The prompt and the negative one.
            return 2 * (facts.layers + 1) * facts.max_length * facts.hidden_size
    return None


def _unet(config: dict[str, Any], manifest: Manifest) -> int | None:
    widths, layers = _channels(config), config.get("layers_per_block")
    if widths is None:
        return None
    each = layers if isinstance(layers, list) else [layers] * len(widths)
    if len(each) != len(widths) or not all(map(_is_count, each)):
        return None
    facts = manifest.latents
    height, width = facts.default_height // facts.scale, facts.default_width // facts.scale
    total = widths[0] * height * width  # of the first convolution
    for level, (channels, count) in enumerate(zip(widths, each, strict=True)):
        total += count * channels * (height >> level) * (width >> level)
        if level + 1 < len(widths):  # the convolution that halves the size
            total += channels * (height >> level + 1) * (width >> level + 1)
    return 2 * total  # guidance doubles the batch


def _vae_decoder(config: dict[str, Any], manifest: Manifest) -> int | None:
    widths = _channels(config)
    if widths is None:
        return None
    outer, inner = widths[0], widths[min(1, len(widths) - 1)]
    facts = manifest.latents
    return (inner + 2 * outer) * facts.default_height * facts.default_width


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
