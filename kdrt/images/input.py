"""Images and masks as users have them, as tensors the networks read.

An image may be a PIL image of any mode, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``; a mask a
PIL image, an array ``[H, W]`` or a tensor ``[1, H, W]``; each alone, in a list, or with a batch
dimension in front. Numbers are 0 to 255 as uint8, 0 to 65535 as uint16, or floats from 0 to 1.

Alpha, as a fourth channel or as a PIL image has it: images are composited on white, as the
AUTOMATIC1111 web UI does, so that no hidden colour shows. In a mask of a single colour that is
drawn on nothing, alpha is the mask; where colour and alpha both vary, nobody can tell what is
meant, and it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kdrt.common.validation import MAX_SIDE, check_dense
from kdrt.errors import InvalidRequestError
from kdrt.images.files import readable
from kdrt.images.masked_part import resized

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FULL = {"bool": 1, "uint8": 255, "uint16": 65535}
"""What white is, by dtype; of floats it is 1."""

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""The modes of grey with more than 8 bits, which Pillow would clip."""

_RANGES = {"I": (255, 65535, 2**31 - 1), "F": (1, 255, 65535)}
"""What white may be in modes that do not say it."""

_SAME_COLOUR = 8
"""How far the colours of a mask of one colour may lie apart: lossy files blur them."""

_MAX_LONGER = 100
"""How many times as long as wide an image may be for CLIP: its shorter side is brought to a fixed
size, and the longer one with it."""


def read_images(
    name: str,
    value: object,
    scale: int,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Images as float32 ``[B, 3, H, W]`` in [-1, 1].

    PIL images are turned upright, flattened to RGB and resized (Lanczos) to ``height`` by
    ``width``; what is None follows from the first image, cut down to a multiple of ``scale``.
    Arrays and tensors must have the right size.

    Args:
        name: of the argument, for errors.
        value: one image or several.
        scale: of the VAE; both sides become multiples of it.
        height: rows asked for.
        width: columns asked for.

    Raises:
        InvalidRequestError: no images, images of different sizes, damaged ones, or numbers out of
            range.
    """
    return _read(name, value, scale, height, width, channels=3).mul_(2).sub_(1)


def read_masks(name: str, value: object, height: int, width: int) -> Tensor:
    """Masks as float32 ``[B, 1, H, W]`` in [0, 1]; PIL images are resized as :func:`images`
    does, to the size of the image that they belong to.

    Raises:
        InvalidRequestError: as :func:`images`; or alpha that may or may not be meant; or a mask
            that is 0 and 1 where 255 is white.
    """
    result = _read(name, value, 1, height, width, channels=1)
    if 0 < result.max() <= 1 / 255:
        raise InvalidRequestError(
            f"{name} is black but for values of at most 1 in 255, so nothing would be repainted; "
            "if 1 stands for white, give booleans or floats"
        )
    return result


def read_maps(name: str, value: object, height: int, width: int) -> Tensor:
    """Images that say where things are, as float32 ``[B, 3, H, W]`` in [0, 1]: as
    :func:`read_images`, but arrays and tensors are resized too, and grey ones are taken, which have
    three channels alike.

    Raises:
        InvalidRequestError: see :func:`read_images`.
    """
    each = [_one(name, _with_colours(item), channels=3) for item in _each(name, value)]
    fitted = [
        resized(item, height, width).clamp_(0, 1)
        if isinstance(item, Tensor) and item.ndim == 3 and len(item) == 3 and item.numel()
        else item
        for item in each
    ]
    return _read(name, fitted, 1, height, width, channels=3)


def to_rgb(name: str, image: Image.Image) -> Image.Image:
    """A PIL image of any mode upright and as RGB: alpha on white, deeper modes scaled.

    Raises:
        InvalidRequestError: it is damaged, or of values whose range nobody can tell.
    """
    return _flat(name, image, channels=3)


def pil_image(name: str, value: object) -> Image.Image:
    """An array ``[H, W, 3]`` or a tensor ``[3, H, W]``, or a grey one, as a PIL image.

    Raises:
        InvalidRequestError: it is something else.
    """
    planes = _one(name, value, channels=3)
    if isinstance(planes, Image.Image):
        return planes
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or not planes.numel():
        raise InvalidRequestError(
            f"{name} must be of shape [H, W, 3] as an array, [3, H, W] as a tensor, and this one "
            f"has {list(planes.shape)} (channels first)"
        )
    return _pil(planes)


def clip_pixels(
    images: Sequence[Image.Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Images as CLIP's vision models read them: the shorter side resized to ``size`` (bicubic),
    the middle cut out, normalised by channel. As transformers' ``CLIPImageProcessor`` with
    Pillow, to the rounding of the last operation.

    Returns:
        float32 ``[B, 3, size, size]``.

    Raises:
        InvalidRequestError: see :func:`rgb`; or an image is empty, or a mere line.
    """
    return torch.stack([_clip_pixels(image, size, mean, std) for image in images])


def _clip_pixels(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    image = to_rgb("an image", image)
    shorter, longer = sorted(image.size)
    if not 0 < longer <= _MAX_LONGER * shorter:
        raise InvalidRequestError(
            f"an image of {image.width}x{image.height} pixels is too narrow to be looked at: its "
            f"sides may differ by a factor of {_MAX_LONGER} at most"
        )
    other = int(size * longer / shorter)
    portrait = image.width <= image.height
    image = image.resize(
        (size, other) if portrait else (other, size), resample=Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = _planes(np.asarray(image))
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _read(
    name: str, value: object, scale: int, height: int | None, width: int | None, channels: int
) -> Tensor:
    """float32 ``[B, channels, H, W]`` in [0, 1], a copy."""
    each = [_one(name, item, channels) for item in _each(name, value)]
    if not each:
        raise InvalidRequestError(f"{name} is an empty list; give at least one image")
    rows, columns = _size(each[0])
    height = rows // scale * scale if height is None else height
    width = columns // scale * scale if width is None else width
    if min(height, width) < scale:
        raise InvalidRequestError(
            f"{name} is too small: {columns}x{rows}, at least {scale}x{scale}"
        )
    if max(height, width) > MAX_SIDE:
        raise InvalidRequestError(
            f"{name} is too large: {columns}x{rows}, and no side may be longer than {MAX_SIDE}; "
            "give height and width, to which it is resized"
        )
    return torch.stack([_sized(name, item, height, width, channels) for item in each])


def _each(name: str, value: object) -> Sequence[object]:
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Tensor):
        check_dense(name, value)
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4:
        return list(value)
    return [value]


def _one(name: str, item: object, channels: int) -> Image.Image | Tensor:
    """An image as RGB or grey, or float32 planes ``[C, H, W]`` without alpha."""
    if isinstance(item, Image.Image):
        return _flat(name, item, channels)
    if isinstance(item, np.ndarray):
        planes = _planes(item, name)
    elif isinstance(item, Tensor):
        check_dense(name, item)
        planes = _unit(name, item.detach()[None] if item.ndim == 2 else item.detach())
    else:
        raise InvalidRequestError(
            f"{name} must be a PIL image, an array or a tensor, or a list of them, "
            f"not {type(item).__name__}"
        )
    if planes.numel() and not (planes.min() >= 0 and planes.max() <= 1):  # nor NaN
        raise InvalidRequestError(
            f"{name} must hold floats from 0 to 1, or uint8 from 0 to 255, or uint16"
        )
    has_alpha = planes.ndim == 3 and planes.shape[0] == 4
    return (
        _planes(np.asarray(_without_alpha(name, _pil(planes), channels))) if has_alpha else planes
    )


def _with_colours(item: object) -> object:
    """A grey array or tensor with three channels."""
    if isinstance(item, np.ndarray):
        rows = item[..., None] if item.ndim == 2 else item
        return np.repeat(rows, 3, axis=2) if rows.ndim == 3 and rows.shape[2] == 1 else item
    if isinstance(item, Tensor):
        planes = item[None] if item.ndim == 2 else item
        return planes.expand(3, -1, -1) if planes.ndim == 3 and len(planes) == 1 else item
    return item


def _size(item: Image.Image | Tensor) -> tuple[int, int]:
    """Rows and columns; large ones for what is no image, which is refused by its shape."""
    if isinstance(item, Image.Image):
        return item.height, item.width
    return (item.shape[-2], item.shape[-1]) if item.ndim >= 2 else (MAX_SIDE, MAX_SIDE)


def _sized(name: str, item: Image.Image | Tensor, height: int, width: int, channels: int) -> Tensor:
    """float32 ``[channels, height, width]``: images are resized, planes must have that size."""
    if isinstance(item, Image.Image):
        if item.size != (width, height):
            item = item.resize((width, height), resample=Image.Resampling.LANCZOS)
        return _planes(np.asarray(item))
    if tuple(item.shape) != (channels, height, width):
        forms = (
            f"[{height}, {width}, 3] as an array, [3, {height}, {width}] as a tensor"
            if channels == 3
            else f"[{height}, {width}] as an array, [1, {height}, {width}] as a tensor"
        )
        raise InvalidRequestError(
            f"{name} must be of shape {forms}, and this one has {list(item.shape)} (channels "
            "first); a PIL image of any size is resized"
        )
    return item


def _flat(name: str, image: Image.Image, channels: int) -> Image.Image:
    """Upright, without alpha, RGB or grey (L)."""
    with readable(name):
        image = _straight(name, ImageOps.exif_transpose(image))
        if image.mode == "RGBA":
            return _without_alpha(name, image, channels)
        return image if channels == 3 else image.convert("L")


def _pil(planes: Tensor) -> Image.Image:
    """``[C, H, W]`` in [0, 1] as grey, RGB or RGBA."""
    array = planes.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if len(planes) == 1 else array)


def _straight(name: str, image: Image.Image) -> Image.Image:
    """RGB, or RGBA where there is transparency of any form."""
    if image.mode in _DEEP:
        image = _in_8_bits(name, image)
    elif image.mode == "La":  # multiplied by alpha
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    hidden: Any = image.info.get("transparency")
    if image.mode == "RGB" and max(hidden) > 255:
        # Pillow keeps 8 bits of a PNG's 16, but not of the colour that its header calls hidden.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    return image.convert("RGBA")


def _in_8_bits(name: str, image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    ranges = _RANGES.get(image.mode, (65535,))
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    white = next((white for white in ranges if high <= white), None)
    # Just above 1 it may be an overshoot of 1, or nearly black.
    if not low >= 0 or white is None or (image.mode == "F" and 1 < high < 2):
        *others, last = map(str, ranges)
        raise InvalidRequestError(
            f"{name} is of Pillow's mode {image.mode}, which does not say what white is, and holds "
            f"values from {low:g} to {high:g}: make them 0 to {', '.join(others)} or {last}"
        )
    grey = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    hidden = image.info.get("transparency")
    if hidden is not None:
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey


def _without_alpha(name: str, image: Image.Image, channels: int) -> Image.Image:
    """RGBA as RGB on white, or as the mask (L) that it means."""
    if channels == 3:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    colours, alpha = image.convert("RGB"), image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return colours.convert("L")
    counts = np.array(colours.histogram(alpha)).reshape(3, 256)  # of what alpha leaves to be seen
    drawn = [np.flatnonzero(band) for band in counts]
    varies = alpha.getextrema()[0] != alpha.getextrema()[1]
    if not varies or max(values[-1] - values[0] for values in drawn) > _SAME_COLOUR:
        raise InvalidRequestError(
            f"{name} has colours and alpha, and either could be the mask; give it without alpha, "
            "white where the image is to be repainted"
        )
    return alpha


def _planes(array: NDArray[np.generic], name: str = "") -> Tensor:
    planes = _unit(name, array[..., None] if array.ndim == 2 else array)
    return planes.permute(2, 0, 1) if planes.ndim == 3 else planes


def _unit(name: str, values: Tensor | NDArray[np.generic]) -> Tensor:
    """float32 on the host, white 1: a copy."""
    kind = values.dtype.name if isinstance(values, np.ndarray) else str(values.dtype)[6:]
    if kind not in _FULL and "float" not in kind:
        raise InvalidRequestError(
            f"{name} must hold floats from 0 to 1, or uint8 from 0 to 255, or uint16, not {kind}"
        )
    if isinstance(values, np.ndarray):
        tensor = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    else:
        tensor = values.to("cpu", torch.float32, copy=True)
    return tensor.div_(_FULL.get(kind, 1))
