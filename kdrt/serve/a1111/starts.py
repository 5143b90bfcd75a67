"""The image and the mask to begin with."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from kdrt.images.input import to_rgb
from kdrt.serve.a1111.bodies import ImageBody
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.images import decoded_base64, read_image
from kdrt.serve.limits import RequestLimits

_STRETCHED, _CROPPED = 0, 1
"""Ways to bring an image to another size."""

_FILLS = ("blurred", "original", "noise", "nothing")
"""What to begin with under a mask, in the web UI's order."""

_BLUR = 4
"""Pixels, where nothing is said."""

Size = tuple[int, int]
"""Width and height."""


def read_start(body: ImageBody, scale: int, limits: RequestLimits) -> dict[str, Any]:
    """The fields of a request that begins with the images of a body.

    Args:
        body: as it came.
        scale: of the VAE: both sides are multiples of it.
        limits: of the service.

    Raises:
        LimitError: an image is too large, or the result would be.
        RequestError: there is no image, or more than one, or one cannot be read; or they are to be
            used in a way that is not supported.
    """
    images = body.init_images or []
    if len(images) != 1:
        raise RequestError(
            f"init_images must hold one image, and these are {len(images)}", "init_images"
        )
    image = to_rgb("init_images", _read("init_images", images[0], limits))
    size = (body.width or 0, body.height or 0)
    if not all(size):
        fitted = _fitted(image.size, limits.pixels, scale)
        size = (body.width or fitted[0], body.height or fitted[1])
    if size[0] * size[1] > limits.pixels:
        raise LimitError(
            f"an image of {size[0]}x{size[1]} has more than the {limits.pixels} pixels that this "
            "server makes: ask for a smaller width and height",
            "size",
        )
    fields: dict[str, Any] = {"width": size[0], "height": size[1]}
    mode = body.resize_mode or 0
    if body.mask is None:
        return {**fields, "image": _resized(image, size, mode)}
    mask = _mask(_read("mask", body.mask, limits), image.size)
    fields["inpaint_fill"] = _FILLS[body.inpainting_fill or 0]
    if body.inpaint_full_res is None or body.inpaint_full_res:
        _check_whole(image, limits.pixels)
        fields["inpaint_padding"] = body.inpaint_full_res_padding or 0
        return {**fields, "image": image, **_softened(body, mask, 1.0)}
    # There the web UI blurs the mask before it is resized.
    factor = max(size[0] / image.width, size[1] / image.height)
    image, mask = _resized(image, size, mode), _resized(mask, size, mode)
    return {**fields, "image": image, **_softened(body, mask, factor)}


def _check_whole(image: Image.Image, most_pixels: int) -> None:
    """Raises LimitError: the image, which is as large as the one to answer with, is too large."""
    if image.width * image.height > most_pixels:
        raise LimitError(
            f"an image of {image.width}x{image.height} has more than the {most_pixels} pixels that "
            "this server makes: send a smaller one, or inpaint_full_res false",
            "init_images",
        )


def _mask(image: Image.Image, size: Size) -> Image.Image:
    """White where to repaint, black elsewhere, as large as the image that it belongs to."""
    if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema() != (255, 255):
        grey = image.getchannel("A")
    else:
        grey = to_rgb("mask", image).convert("L")
    mask = grey.point([255 * (value >= 128) for value in range(256)])
    return mask if mask.size == size else mask.resize(size, Image.Resampling.LANCZOS)


def _softened(body: ImageBody, mask: Image.Image, scale: float) -> dict[str, Any]:
    """The mask, and what is done with it.

    Args:
        body: as it came.
        mask: white or black.
        scale: by how much it has been resized.
    """
    usual = _BLUR if body.mask_blur is None else body.mask_blur
    blurs = (usual if blur is None else blur for blur in (body.mask_blur_x, body.mask_blur_y))
    across, down = (scale * blur for blur in blurs)
    is_inverted = bool(body.inpainting_mask_invert)
    if across == down:
        return {"mask_image": mask, "mask_invert": is_inverted, "mask_blur": across}
    # A request has one blur for both.
    mask = ImageOps.invert(mask) if is_inverted else mask
    return {"mask_image": mask.filter(ImageFilter.GaussianBlur((across, down)))}


def _resized(image: Image.Image, size: Size, mode: int) -> Image.Image:
    if image.size == size:
        return image
    if mode == _STRETCHED:
        return image.resize(size, Image.Resampling.LANCZOS)
    if mode == _CROPPED:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    raise UnsupportedError(
        f"resize_mode {mode} is not supported: send 0 or 1, or an image of {size[0]}x{size[1]}",
        "resize_mode",
    )


def _fitted(size: Size, most_pixels: int, scale: int) -> Size:
    """A size no larger than allowed, in multiples of ``scale``."""
    factor = min(1.0, math.sqrt(most_pixels / (size[0] * size[1])))
    width, height = (max(scale, int(side * factor) // scale * scale) for side in size)
    return width, height


def _read(name: str, text: str, limits: RequestLimits) -> Image.Image:
    return read_image(name, decoded_base64(name, text), limits.input_pixels)
