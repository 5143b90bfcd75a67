"""The image and the mask of a request: checked, and brought to the size of the result."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from kdrt.bundle import Manifest
from kdrt.common.literals import OutputType
from kdrt.common.validation import check_dense, finite_or_none
from kdrt.denoise.bound_unet import is_inpainting
from kdrt.errors import InvalidRequestError
from kdrt.images.init_image import InitImage
from kdrt.images.input import read_images, read_masks
from kdrt.images.masked_part import MaskedPart
from kdrt.images.masks import shaped
from kdrt.prompt.given import checked_embeddings
from kdrt.request.fields import FIELDS, Request
from kdrt_engines import EngineSpec

IMAGE_STRENGTH = 0.8
"""Where none is given; with a mask all of what is masked is made anew."""

_OF_A_MASK = (
    *("mask_blur", "mask_grow", "mask_invert", "soft_mask"),
    *("inpaint_fill", "inpaint_padding"),
)


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
    if needs_mask and request["soft_mask"]:
        raise InvalidRequestError(
            f"'{manifest.name}' is an inpainting model, which is told a mask of black and white: "
            "leave soft_mask out, or take a model that is none"
        )
    facts = manifest.latents
    if request["inpaint_padding"] is not None:
        return _read_masked_part(request, manifest, images)
    latents = pixels = None
    if _is_latents(request["image"], facts.channels):
        if needs_mask:
            raise InvalidRequestError("an inpainting model needs the image itself, not its latents")
        if request["inpaint_fill"] == "blurred":
            raise InvalidRequestError(
                "inpaint_fill='blurred' needs the image itself, not its latents: its colours flow"
            )
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
        mask = _read_mask(request, height, width, images)
    return InitImage(
        pixels=pixels,
        latents=latents,
        mask=mask,
        soft=request["soft_mask"],
        fill=request["inpaint_fill"],
        anew=finite_or_none(request["strength"]) == 1,
        keep_unmasked=request["keep_unmasked"],
        part=None,
        height=height,
        width=width,
    )


def check_mask_fields(request: Request, output_type: OutputType) -> None:
    """Refuse fields about a mask that is not there, or that do not go together.

    Raises:
        InvalidRequestError: see above.
    """
    if request["mask_image"] is None:
        for name in _OF_A_MASK:
            if request[name] != FIELDS[name].default:  # type: ignore[literal-required]
                raise InvalidRequestError(
                    f"{name} says how to use mask_image, and there is none; give one, or leave "
                    f"{name} out"
                )
    if request["inpaint_padding"] is None:
        return
    if output_type == "latent":
        raise InvalidRequestError(
            "inpaint_padding puts the masked part back into the image, which latents have not; "
            "ask for another output_type, or leave inpaint_padding out"
        )
    if not request["keep_unmasked"]:
        raise InvalidRequestError(
            "inpaint_padding makes the masked part alone and keeps the rest, so keep_unmasked "
            "cannot be False; leave one of them out"
        )


def _read_masked_part(request: Request, manifest: Manifest, images: int) -> InitImage:
    """The masked parts of images, at the size asked for or the model's."""
    facts = manifest.latents
    if _is_latents(request["image"], facts.channels):
        raise InvalidRequestError("inpaint_padding needs the image itself, not its latents")
    whole = _per_image("image", read_images("image", request["image"], 1), images)
    _, _, rows, columns = whole.shape
    mask = _read_mask(request, rows, columns, images)
    height = request["height"] or facts.default_height
    width = request["width"] or facts.default_width
    padding = request["inpaint_padding"]
    assert padding is not None
    part = MaskedPart.around(whole, mask, padding, height, width)
    if part is None:
        raise InvalidRequestError(
            "nothing is white in mask_image, so nothing would be repainted; paint it where the "
            "image is to change, or leave inpaint_padding out"
        )
    pixels, masked = part.cut(height, width)
    return InitImage(
        pixels=pixels,
        latents=None,
        mask=masked,
        soft=request["soft_mask"],
        fill=request["inpaint_fill"],
        anew=finite_or_none(request["strength"]) == 1,
        keep_unmasked=True,
        part=part,
        height=height,
        width=width,
    )


def _read_mask(request: Request, height: int, width: int, images: int) -> Tensor:
    """The masks of B images in the shape that is asked for."""
    read = read_masks("mask_image", request["mask_image"], height, width)
    mask = shaped(
        read,
        invert=request["mask_invert"],
        grow=request["mask_grow"],
        blur=request["mask_blur"],
    )
    return _per_image("mask_image", mask, images)


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
