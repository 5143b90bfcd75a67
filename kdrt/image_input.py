"""Pictures and masks as users have them, as tensors the networks read.

A picture may be a PIL image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``; a mask a PIL image,
an array ``[H, W]`` or a tensor ``[1, H, W]``; each alone, in a list, or with a batch dimension in
front. Numbers are 0 to 255 as uint8, or floats from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kdrt.errors import InvalidRequest

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pictures(
    name: str,
    value: object,
    scale: int,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Pictures as float32 ``[B, 3, H, W]`` in [-1, 1].

    PIL images are turned upright, flattened to RGB and resized (Lanczos) to ``height`` by
    ``width``; what is None follows from the first picture, cut down to a multiple of ``scale``.
    Arrays and tensors must have the right size.

    Args:
        name: of the argument, for errors.
        value: one picture or several.
        scale: of the VAE; both sides become multiples of it.
        height: rows asked for.
        width: columns asked for.

    Raises:
        InvalidRequest: no pictures, pictures of different sizes, or numbers out of range.
    """
    return _read(name, value, scale, height, width, channels=3).mul_(2).sub_(1)


def masks(name: str, value: object, height: int, width: int) -> Tensor:
    """Masks as float32 ``[B, 1, H, W]`` in [0, 1]; PIL images are resized as :func:`pictures`
    does, to the size of the picture that they belong to.

    Raises:
        InvalidRequest: as :func:`pictures`.
    """
    return _read(name, value, 1, height, width, channels=1)


def clip_pixels(
    images: Sequence[Image.Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Pictures as CLIP's vision models read them: the shorter side resized to ``size`` (bicubic),
    the middle cut out, normalised by channel. As transformers' ``CLIPImageProcessor`` with
    Pillow, to the rounding of the last operation.

    Returns:
        float32 ``[B, 3, size, size]``.
    """
    return torch.stack([_clip_pixels(image, size, mean, std) for image in images])


def _clip_pixels(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    image = image.convert("RGB")
    shorter, longer = sorted(image.size)
    other = int(size * longer / shorter)
    portrait = image.width <= image.height
    image = image.resize(
        (size, other) if portrait else (other, size), resample=Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = _from_array(np.asarray(image))
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _read(
    name: str, value: object, scale: int, height: int | None, width: int | None, channels: int
) -> Tensor:
    """float32 ``[B, channels, H, W]`` in [0, 1], a copy."""
    each = list(_each(name, value))
    if not each:
        raise InvalidRequest(f"{name} is an empty list; give at least one picture")
    rows, columns = _size(each[0])
    height = rows // scale * scale if height is None else height
    width = columns // scale * scale if width is None else width
    if min(height, width) < scale:
        raise InvalidRequest(f"{name} is too small: {columns}x{rows}, at least {scale}x{scale}")
    return torch.stack([_one(name, item, height, width, channels) for item in each])


def _each(name: str, value: object) -> Sequence[object]:
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4:
        return list(value)
    return [value]


def _size(item: object) -> tuple[int, int]:
    """Rows and columns, (0, 0) for what is no picture."""
    if isinstance(item, Image.Image):
        upright = ImageOps.exif_transpose(item)
        return upright.height, upright.width
    if isinstance(item, np.ndarray) and item.ndim >= 2:
        return item.shape[0], item.shape[1]
    if isinstance(item, Tensor) and item.ndim >= 2:
        return item.shape[-2], item.shape[-1]
    return 1 << 30, 1 << 30  # refused by its type, not by its size


def _one(name: str, item: object, height: int, width: int, channels: int) -> Tensor:
    if isinstance(item, Image.Image):
        upright = ImageOps.exif_transpose(item).convert("RGB" if channels == 3 else "L")
        if upright.size != (width, height):
            upright = upright.resize((width, height), resample=Image.Resampling.LANCZOS)
        return _from_array(np.asarray(upright))
    if isinstance(item, np.ndarray):
        tensor = _from_array(item, name)
    elif isinstance(item, Tensor):
        tensor = item.detach()
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        tensor = _unit(name, tensor.cpu())
    else:
        raise InvalidRequest(
            f"{name} must be a PIL image, an array or a tensor, or a list of them, "
            f"not {type(item).__name__}"
        )
    wanted = (channels, height, width)
    if tuple(tensor.shape) != wanted:
        forms = (
            f"[{height}, {width}, 3] as an array, [3, {height}, {width}] as a tensor"
            if channels == 3
            else f"[{height}, {width}] as an array, [1, {height}, {width}] as a tensor"
        )
        raise InvalidRequest(
            f"{name} must be of shape {forms}, not {list(item.shape)}; a PIL image of any size is "
            "resized"
        )
    if not bool(torch.isfinite(tensor).all()) or tensor.min() < 0 or tensor.max() > 1:
        raise InvalidRequest(f"{name} must hold floats from 0 to 1, or uint8 from 0 to 255")
    return tensor


def _from_array(array: NDArray[np.generic], name: str = "") -> Tensor:
    planes = array[..., None] if array.ndim == 2 else array
    tensor = torch.from_numpy(np.ascontiguousarray(planes).copy())
    return _unit(name, tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor)


def _unit(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32).div_(255)
    if tensor.dtype == torch.bool:
        return tensor.to(torch.float32)
    if not tensor.is_floating_point():
        raise InvalidRequest(f"{name} must hold floats from 0 to 1, or uint8 from 0 to 255")
    return tensor.to(torch.float32, copy=True)
