"""The regions of a request: prompts, and what each of them counts for at every latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.validation import check_texts, excerpt, finite_or_none
from kdrt.denoise.regional import MAX_REGIONS, relative_weights
from kdrt.errors import InvalidRequestError
from kdrt.images.input import pil_image, read_masks
from kdrt.images.region import Region
from kdrt.request.fields import FIELDS, Request
from kdrt.request.images_to_make import ImagesToMake

_MAX_WEIGHT = 1000.0


class RegionsJob(NamedTuple):
    """The regions of a job.

    Attributes:
        prompts: N of them.
        counts: the weight of each, as it was given.
        weights: float32 ``[n, 1 + N, 1, h, w]``, on the host, of all images (n = 1) or of each; see
            `kdrt.denoise.regional.relative_weights`.
    """

    prompts: tuple[str, ...]
    counts: tuple[float, ...]
    weights: Tensor


def regions_of(request: Request, manifest: Manifest, to_make: ImagesToMake) -> RegionsJob | None:
    """The regions of a request; None if there are none.

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
    masks = [
        _mask(f"the mask of region {number}", region.mask, to_make)
        for number, region in enumerate(regions, start=1)
    ]
    counts = tuple(
        _weight(f"the weight of region {number}", region.weight)
        for number, region in enumerate(regions, start=1)
    )
    # How much of each latent is in each region.
    shares = F.avg_pool2d(torch.cat(masks, dim=1), manifest.latents.scale)
    return RegionsJob(
        check_texts("the prompts of regions", [region.prompt for region in regions]),
        counts,
        torch.stack([relative_weights(each, counts, base_weight) for each in shares]),
    )


def _mask(name: str, value: object, to_make: ImagesToMake) -> Tensor:
    """Where a region is: ``[n, 1, H, W]``, of all images (n = 1) or of each."""
    if isinstance(value, np.ndarray | Tensor):
        value = pil_image(name, value)  # which can be resized, as for a second pass
    mask = read_masks(name, value, *to_make.whole)
    if len(mask) != 1:
        raise InvalidRequestError(f"{name} must be one image, not {len(mask)}")
    if not mask.any():
        raise InvalidRequestError(f"{name} is black everywhere; paint the region white")
    return to_make.parts_of(mask)


def _weight(name: str, value: object) -> float:
    weight = finite_or_none(value)
    if weight is None or not 0 < weight <= _MAX_WEIGHT:
        raise InvalidRequestError(
            f"{name} must be a number above 0 and at most {_MAX_WEIGHT:g}, not {excerpt(value)}"
        )
    return weight
