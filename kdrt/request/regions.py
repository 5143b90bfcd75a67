"""The regions of a request: prompts, and what each of them counts for at every latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.validation import check_texts, excerpt, finite_or_none
from kdrt.denoise.regional import MAX_REGIONS, relative_weights
from kdrt.errors import InvalidRequestError
from kdrt.images.input import pil_image, read_masks
from kdrt.images.region import Region
from kdrt.request.fields import FIELDS, Request

_MAX_WEIGHT = 1000.0


class RegionsJob(NamedTuple):
    """The regions of a job, the same for all of its images.

    Attributes:
        prompts: N of them.
        counts: the weight of each, as it was given.
        weights: float32 ``[1 + N, 1, h, w]``, on the host; see
            `kdrt.denoise.regional.relative_weights`.
    """

    prompts: tuple[str, ...]
    counts: tuple[float, ...]
    weights: Tensor


def regions_of(request: Request, manifest: Manifest, height: int, width: int) -> RegionsJob | None:
    """The regions of a request for images of a size in pixels; None if there are none.

    Raises:
        InvalidRequestError: they are no regions, or too many; or a mask is black.
    """
    regions, base_weight = request["regions"], request["region_base_weight"]
    if regions is None:
        if base_weight != FIELDS["region_base_weight"].default:
            raise InvalidRequestError(
                "region_base_weight belongs to regions; give some, or leave it out"
            )
        return None
    if not isinstance(regions, Sequence) or not all(isinstance(each, Region) for each in regions):
        raise InvalidRequestError(
            'regions must be a list such as [kdrt.Region("a red circle", mask)], not '
            f"{excerpt(regions)}"
        )
    if not 1 <= len(regions) <= MAX_REGIONS:
        raise InvalidRequestError(
            f"these are {len(regions)} regions; give from 1 to {MAX_REGIONS}, or leave regions out"
        )
    scale = manifest.latents.scale
    masks = [
        _mask(f"the mask of region {number}", region.mask, height, width, scale)
        for number, region in enumerate(regions, start=1)
    ]
    counts = tuple(
        _weight(f"the weight of region {number}", region.weight)
        for number, region in enumerate(regions, start=1)
    )
    stacked = masks[0].new_empty(len(masks), *masks[0].shape)
    for into, mask in zip(stacked, masks, strict=True):
        into.copy_(mask)
    return RegionsJob(
        check_texts("the prompts of regions", [region.prompt for region in regions]),
        counts,
        relative_weights(stacked, counts, base_weight),
    )


def _mask(name: str, value: object, height: int, width: int, scale: int) -> Tensor:
    """How much of each latent is in a region: ``[h, w]``."""
    if isinstance(value, np.ndarray | Tensor):
        value = pil_image(name, value)  # which can be resized, as for a second pass
    masks = read_masks(name, value, height, width)
    if len(masks) != 1:
        raise InvalidRequestError(f"{name} must be one image, not {len(masks)}")
    shares: Tensor = F.avg_pool2d(masks, scale)[0, 0]
    if not shares.any():
        raise InvalidRequestError(f"{name} is black everywhere; paint the region white")
    return shares


def _weight(name: str, value: object) -> float:
    weight = finite_or_none(value)
    if weight is None or not 0 < weight <= _MAX_WEIGHT:
        raise InvalidRequestError(
            f"{name} must be a number above 0 and at most {_MAX_WEIGHT:g}, not {excerpt(value)}"
        )
    return weight
