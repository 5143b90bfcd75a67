"""Where in the image each image of an IP-Adapter counts.

As diffusers' ``IPAdapterMaskProcessor``: a PIL image is brought to the size of the image that is
made, and is white or black from the middle on; a tensor may be grey. For each transformer the mask
is brought to the size that latents have there (bicubic). Where diffusers only guesses that size
from the number of places, at odd ones, it is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.errors import InvalidRequestError
from kdrt.images.input import read_masks

ImageMasks: TypeAlias = Any
"""A mask as :mod:`kdrt.images.input` reads it, or a list of one for each image of an adapter; or
those by the adapter's name."""

_NAME = "ip_adapter_masks"


def mask_planes(
    masks: object, manifest: Manifest, given: Mapping[str, int], height: int, width: int
) -> Tensor:
    """The masks of all images at all sizes, smaller ones in the corner of their plane.

    Args:
        masks: one for each image of each adapter, by its name; where the bundle has one adapter,
            its own. An adapter without masks counts everywhere.
        manifest: of a bundle with IP-Adapters.
        given: how many images each adapter is given.
        height, width: of the image that is made, in pixels.

    Returns:
        float32 ``[S·K, h, w]``.

    Raises:
        InvalidRequestError: they are no masks, or not one for each image.
    """
    levels = sorted(set(manifest.ip_attentions.values()))
    scale = manifest.latents.scale
    rows, columns = height // scale, width // scale
    by_adapter = _by_adapter(masks, manifest)
    planes = []
    for name, facts in manifest.ip_adapters.items():
        count = given.get(name, 0)
        own = torch.ones(facts.images, 1, rows, columns)
        planes.append(own.repeat(1, len(levels), 1, 1))
        if name not in by_adapter:
            continue
        read = _read(by_adapter[name], height, width)
        if len(read) != count:
            raise InvalidRequestError(
                f"{_NAME} has {len(read)} masks for the {count} images of '{name}': give one for "
                "each"
            )
        for channel, level in enumerate(levels):
            size = [-(-side // 2**level) for side in (rows, columns)]
            smaller = F.interpolate(read, size=size, mode="bicubic")
            planes[-1][:count, channel, : size[0], : size[1]] = smaller[:, 0]
    return torch.cat([own.flatten(0, 1) for own in planes])


def _by_adapter(masks: object, manifest: Manifest) -> Mapping[str, object]:
    names = tuple(manifest.ip_adapters)
    if not manifest.ip_attentions:
        raise InvalidRequestError(
            f"'{manifest.name}' was exported before there were {_NAME}; export it again"
        )
    if isinstance(masks, Mapping):
        unknown = [name for name in masks if name not in names]
        if unknown:
            raise InvalidRequestError(
                f"{_NAME} names '{unknown[0]}', and '{manifest.name}' has the IP-Adapters "
                f"{', '.join(names)}"
            )
        return masks
    if len(names) > 1:
        raise InvalidRequestError(
            f"'{manifest.name}' has the IP-Adapters {', '.join(names)}: give {_NAME} by name, as "
            f"in {{'{names[0]}': mask}}"
        )
    return {names[0]: masks}


def _read(masks: object, height: int, width: int) -> Tensor:
    """Masks as ``[n, 1, H, W]``; PIL images in black and white."""
    if isinstance(masks, Tensor) and masks.ndim == 4:
        height, width = masks.shape[-2:]  # of any size: they are brought to those of the latents
    read = read_masks(_NAME, masks, height, width)
    listed = masks if isinstance(masks, list | tuple) else [masks]
    for mask, plane in zip(listed, read, strict=False):
        if isinstance(mask, Image.Image):
            plane.copy_(plane >= 0.5)
    return read
