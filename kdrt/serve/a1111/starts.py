"""The image and the mask to begin with, and what is done with the result afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from kdrt.images.input import to_rgb
from kdrt.serve.a1111.bodies import ImageBody
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.images import decoded_base64, read_image
from kdrt.serve.limits import RequestLimits

_STRETCHED, _CROPPED = 0, 1
"""Ways to bring an image to another size."""

_COLOURS_AROUND, _IMAGE_ITSELF = 0, 1
"""What to begin with under a mask."""

_BLUR = 4
"""Pixels, where nothing is said."""

_BLURS = (256, 64, 16, 4, 2)
"""Radii of the colours that flow under a mask, from the largest to the smallest."""

Size = tuple[int, int]
"""Width and height."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""


Finish = Callable[[Image.Image], Image.Image]
"""From a made image to the one to answer with."""


@dataclass(frozen=True)
class Start:
    """What to begin with.

    Attributes:
        fields: of the request.
        finish: what is done with each image; None where nothing is.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    finish: Finish | None = None


def read_start(body: ImageBody, scale: int, limits: RequestLimits) -> Start:
    """Read the images of a body, and bring them to the size of the result.

    Args:
        body: as it came.
        scale: of the VAE: both sides are multiples of it.
        limits: of the service.

    Raises:
        LimitError: one is too large, or the result would be.
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
    if body.mask is None:
        return Start(_fields(_resized(image, size, body.resize_mode or 0), size))
    mask = _mask(body, _read("mask", body.mask, limits), image.size)
    if body.inpainting_fill not in (None, _COLOURS_AROUND, _IMAGE_ITSELF):
        raise UnsupportedError(
            f"inpainting_fill {body.inpainting_fill} is not supported: send 0 or 1",
            "inpainting_fill",
        )
    if body.inpaint_full_res is None or body.inpaint_full_res:
        return _masked_part(body, image, mask, size, limits.pixels)
    mode = body.resize_mode or 0
    return _inpainted(body, _resized(image, size, mode), _resized(mask, size, mode), size)


def _fields(image: Image.Image, size: Size, mask: Image.Image | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {"image": image, "width": size[0], "height": size[1]}
    return fields if mask is None else {**fields, "mask_image": mask}


def _inpainted(body: ImageBody, image: Image.Image, mask: Image.Image, size: Size) -> Start:
    """The whole image, of which what is masked is made anew."""
    if body.inpainting_fill == _IMAGE_ITSELF:
        return Start(_fields(image, size, mask))

    def finish(made: Image.Image) -> Image.Image:
        return Image.composite(made, image, mask)

    fields = _fields(_with_colours_around(image, mask), size, mask)
    return Start({**fields, "keep_unmasked": False}, finish)


def _masked_part(
    body: ImageBody, image: Image.Image, mask: Image.Image, size: Size, most_pixels: int
) -> Start:
    """The masked part alone, made at the whole size and put back into the image.

    Raises:
        LimitError: the image, which is as large as the one to answer with, is too large.
        RequestError: nothing is masked.
    """
    if image.width * image.height > most_pixels:
        raise LimitError(
            f"an image of {image.width}x{image.height} has more than the {most_pixels} pixels that "
            "this server makes: send a smaller one, or inpaint_full_res false",
            "init_images",
        )
    box = _part(mask, body.inpaint_full_res_padding or 0, size)
    part, masked = (
        whole.crop(box).resize(size, Image.Resampling.LANCZOS) for whole in (image, mask)
    )
    inner = _inpainted(body, part, masked, size)

    def finish(made: Image.Image) -> Image.Image:
        made = made if inner.finish is None else inner.finish(made)
        whole = image.copy()
        whole.paste(
            made.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2]
        )
        return Image.composite(whole, image, mask)

    return Start(inner.fields, finish)


def _part(mask: Image.Image, padding: int, size: Size) -> Box:
    """The part of an image that holds all that is masked, in the proportions of ``size`` where
    there is room."""
    masked = mask.getbbox()
    if masked is None:
        raise RequestError("nothing is white in the mask, so nothing would be repainted", "mask")
    left, right = _padded(masked[0], masked[2], padding, mask.width)
    top, bottom = _padded(masked[1], masked[3], padding, mask.height)
    width, height = right - left, bottom - top
    if width * size[1] > height * size[0]:
        top, bottom = _widened(top, bottom, math.ceil(width * size[1] / size[0]), mask.height)
    else:
        left, right = _widened(left, right, math.ceil(height * size[0] / size[1]), mask.width)
    return left, top, right, bottom


def _padded(low: int, high: int, padding: int, most: int) -> tuple[int, int]:
    return max(0, low - padding), min(most, high + padding)


def _widened(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    """A range of at least ``length`` about the same middle, within 0 and ``most``."""
    length = min(max(length, high - low), most)
    low = min(max(0, (low + high - length) // 2), most - length)
    return low, low + length


def _mask(body: ImageBody, image: Image.Image, size: Size) -> Image.Image:
    """White where to repaint, its edge blurred, as large as the image."""
    if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema() != (255, 255):
        grey = image.getchannel("A")
    else:
        grey = to_rgb("mask", image).convert("L")
    mask = grey.point([255 * (value >= 128) for value in range(256)])
    if body.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    usual = _BLUR if body.mask_blur is None else body.mask_blur
    across = usual if body.mask_blur_x is None else body.mask_blur_x
    down = usual if body.mask_blur_y is None else body.mask_blur_y
    return mask.filter(ImageFilter.GaussianBlur((across, down)))


def _with_colours_around(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What is masked filled with the colours around it: those near its edge from near, those
    within from further away."""
    kept = image.convert("RGBA")
    kept.putalpha(ImageOps.invert(mask))
    # Alpha in the colours, so that what is hidden does not flow into what is not.
    kept = kept.convert("RGBa")
    filled = Image.new("RGBA", image.size, (0, 0, 0, 255))
    for radius in _BLURS:
        flowing = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(4 if radius < 16 else 2):
            filled.alpha_composite(flowing)
    return Image.composite(filled.convert("RGB"), image, mask)


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
