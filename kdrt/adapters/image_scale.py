"""How much the images of IP-Adapters count, transformer by transformer.

A scale is a number for all of a UNet; or numbers for parts of it, by name, and 0 for the others:

    {"up.block_0": [0, 1, 0], "down.block_2": 0.5}

Names are those of diffusers' ``set_ip_adapter_scale``: ``down``, ``mid`` and ``up``, a block of
one, or an attention of a block. ``{"up": {"block_0": [0, 1, 0]}}`` means the same. With several
adapters each has a scale of its own by its name; a list is one scale for each of its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.validation import check_finite, excerpt
from kdrt.errors import InvalidRequestError

BlockScale: TypeAlias = float | Mapping[str, Any]
"""Of one image: a number, or numbers by part."""

ImageScale: TypeAlias = float | Mapping[str, Any]
"""Of all images: one for all, or one for each adapter by its name."""

PARTS = ("down", "mid", "up")

_NAME = "ip_adapter_scale"


def scale_table(scale: object, manifest: Manifest, given: Mapping[str, int]) -> Tensor:
    """The scale of each image at each transformer.

    Args:
        scale: an `ImageScale`; adapters that it does not name count fully.
        manifest: of a bundle with IP-Adapters.
        given: how many images each adapter is given.

    Returns:
        float32 ``[S, A]``, 0 for images that are not given; ``[1]`` where the bundle has one number
        for all.

    Raises:
        InvalidRequestError: it is no scale, or of adapters or parts that there are not.
    """
    by_adapter = _by_adapter(scale, manifest)
    attentions = tuple(manifest.ip_attentions)
    if not attentions:
        (only,) = by_adapter.values()
        if not isinstance(only, Mapping):
            return torch.tensor([check_finite(_NAME, only)])
        raise InvalidRequestError(
            f"'{manifest.name}' was exported before {_NAME} could be of parts: give one number, or "
            "export it again"
        )
    rows: list[list[float]] = []
    for name, facts in manifest.ip_adapters.items():
        count = given.get(name, 0)
        scales = _of_images(name, by_adapter[name], count)
        rows += [_columns(each, attentions) for each in scales]
        rows += [[0.0] * len(attentions)] * (facts.images - count)
    return torch.tensor(rows, dtype=torch.float32)


def _by_adapter(scale: object, manifest: Manifest) -> dict[str, object]:
    """The scale of each adapter."""
    names = tuple(manifest.ip_adapters)
    if not isinstance(scale, Mapping) or not scale or _is_of_parts(scale):
        return dict.fromkeys(names, scale)
    unknown = [name for name in scale if name not in names]
    if unknown:
        raise InvalidRequestError(
            f"{_NAME} names {excerpt(unknown[0])}, and '{manifest.name}' has the IP-Adapters "
            f"{', '.join(names)}; parts of the UNet are down, mid and up"
        )
    return {name: scale.get(name, 1.0) for name in names}


def _is_of_parts(scale: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and key.partition(".")[0] in PARTS for key in scale)


def _of_images(name: str, scale: object, count: int) -> Sequence[object]:
    """The scale of each image of an adapter."""
    if not isinstance(scale, list | tuple):
        return [scale] * count
    if count and len(scale) != count:
        raise InvalidRequestError(
            f"{_NAME} has {len(scale)} scales for the {count} images of '{name}'"
        )
    return scale[:count]


def _columns(scale: object, attentions: Sequence[str]) -> list[float]:
    """The scale of one image at each transformer."""
    if not isinstance(scale, Mapping):
        return [check_finite(_NAME, scale)] * len(attentions)
    columns = [0.0] * len(attentions)
    # What is said of a part of a part counts before what is said of the whole.
    for part, value in sorted(_flat(scale), key=lambda item: item[0].count(".")):
        places = [
            place for place, name in enumerate(attentions) if f"{name}.".startswith(f"{part}.")
        ]
        if not places:
            raise InvalidRequestError(
                f"{_NAME} names {excerpt(part)}, and the model attends to images at "
                f"{', '.join(attentions)}"
            )
        values = list(value) if isinstance(value, list | tuple) else [value] * len(places)
        if len(values) != len(places):
            raise InvalidRequestError(
                f"{_NAME} has {len(values)} numbers for {part}, which has {len(places)} attentions"
            )
        for place, number in zip(places, values, strict=True):
            columns[place] = check_finite(_NAME, number)
    return columns


def _flat(scale: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in scale.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
