"""The image and the mask of a request: checked, and brought to the size of the result."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.validation import check_dense, finite_or_none
from kdrt.denoise.bound_unet import is_inpainting
from kdrt.errors import InvalidRequestError
from kdrt.images.init_image import InitImage
from kdrt.images.input import read_images, read_masks
from kdrt.prompt.given import checked_embeddings
from kdrt.request.fields import Request
from kdrt_engines import EngineSpec

IMAGE_STRENGTH = 0.8
"""Where none is given; with a mask all of what is masked is made anew."""


def read_init_image(
    request: Request, manifest: Manifest, unet: EngineSpec, images: int
) -> InitImage | None:
    """Check and convert the image and mask of a request for ``images`` images; None if it has
    none, or if its latents continue another run.

    Raises:
        InvalidRequestError: they are missing where the model needs them, or of no use.
    """
    needs_mask = is_inpainting(unet)
    if request["image"] is None:
        if request["mask_image"] is not None:
            raise InvalidRequestError(
                "mask_image says which part of image to repaint; give image too"
            )
        if needs_mask:
            raise InvalidRequestError(
                f"'{manifest.name}' is an inpainting model: give image and mask_image (white is "
                "repainted)"
            )
        return None
    if needs_mask and request["mask_image"] is None:
        raise InvalidRequestError(f"'{manifest.name}' is an inpainting model: give mask_image too")
    facts = manifest.latents
    latents = pixels = None
    if _is_latents(request["image"], facts.channels):
        if needs_mask:
            raise InvalidRequestError("an inpainting model needs the image itself, not its latents")
        given = checked_embeddings("image", request["image"], ("B", facts.channels, "h", "w"))
        latents = _per_image("image", given.to(torch.float32), images)
        height, width = (side * facts.scale for side in latents.shape[2:])
        if (request["height"] or height, request["width"] or width) != (height, width):
            raise InvalidRequestError(
                f"these latents are of a {width}x{height} image; leave out size"
            )
    else:
        pixels = read_images(
            "image", request["image"], facts.scale, request["height"], request["width"]
        )
        pixels = _per_image("image", pixels, images)
        height, width = pixels.shape[2:]
    mask = None
    if request["mask_image"] is not None:
        mask = _per_image(
            "mask_image", read_masks("mask_image", request["mask_image"], height, width), images
        )
    return InitImage(
        pixels=pixels,
        latents=latents,
        mask=mask,
        anew=finite_or_none(request["strength"]) == 1,
        keep_unmasked=request["keep_unmasked"],
        height=height,
        width=width,
    )


def with_defaults(request: Request, manifest: Manifest) -> Request:
    """Fill in ``strength`` of a request with an ``image``, and take latents of a hand-over that are
    given as such for what they are.

    Raises:
        InvalidRequestError: a hand-over of something else than latents.
    """
    if request["denoising_start"] is not None:
        if (
            not _is_latents(request["image"], manifest.latents.channels)
            or request["mask_image"] is not None
        ):
            raise InvalidRequestError(
                "denoising_start goes on with the latents of another run; begin with an image by "
                "strength"
            )
        return {**request, "image": None, "latents": cast(Tensor, request["image"])}
    own_grid = request["sigmas"] is not None or request["timesteps"] is not None
    if request["strength"] is None and not own_grid:
        return {**request, "strength": IMAGE_STRENGTH if request["mask_image"] is None else 1.0}
    return request


def _is_latents(value: object, channels: int) -> bool:
    if not isinstance(value, Tensor):
        return False
    check_dense("image", value)
    return value.ndim == 4 and value.is_floating_point() and value.shape[1] == channels != 3


def _per_image(name: str, values: Tensor, images: int) -> Tensor:
    """One for all, one for each, or one for each prompt."""
    if not len(values) or images % len(values):
        raise InvalidRequestError(
            f"{len(values)} images in {name} for {images} images: give one for all, or one for "
            "each prompt"
        )
    return values.repeat_interleave(images // len(values), dim=0)
