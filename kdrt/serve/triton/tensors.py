"""Between tensors, which is what Triton's clients send and get, and requests and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdrt.pipeline.result import Result
from kdrt.request.fields import FIELDS, Request
from kdrt.serve.errors import LimitError, RequestError
from kdrt.serve.limits import RequestLimits


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as ``config.pbtxt`` describes it.

    Attributes:
        name: of the tensor; of an input that of the request's field.
        datatype: Triton's word for it.
        dims: -1 is any size.
        help: what it holds.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    help: str


_IMAGES = {"image": (-1, -1, 3), "mask_image": (-1, -1), "ip_adapter_image": (-1, -1, 3)}

# A float32 would put other digits into the image's text than were asked for.
_SCALARS: dict[Any, str] = {int: "TYPE_INT64", float: "TYPE_FP64", bool: "TYPE_BOOL"}

_PIXELS = " As pixels, uint8 of height, width and, but for a mask, red, green and blue."


def _inputs() -> tuple[TensorInfo, ...]:
    found = []
    for name, field in FIELDS.items():
        if name in _IMAGES:
            found.append(TensorInfo(name, "TYPE_UINT8", _IMAGES[name], field.help + _PIXELS))
        elif field.scalar is not None and not field.is_mapping:
            datatype = _SCALARS.get(field.scalar, "TYPE_STRING")
            found.append(TensorInfo(name, datatype, (1,), field.help))
    return tuple(found)


INPUTS = _inputs()
"""The fields of a request that are one word or number, and its images. All but the prompt may be
left out."""

OUTPUTS = (
    TensorInfo("images", "TYPE_UINT8", (-1, -1, -1, 3), "Images, height, width; RGB."),
    TensorInfo("seeds", "TYPE_INT64", (-1,), "The seed of each image."),
    TensorInfo("infotexts", "TYPE_STRING", (-1,), "How each image was made."),
)


def request_of(tensors: Mapping[str, NDArray[Any]], limits: RequestLimits) -> Request:
    """The request that the given inputs ask for. It keeps none of their memory.

    Args:
        tensors: by name, as :data:`INPUTS` describes them; strings are UTF-8.
        limits: of the images that come in.

    Raises:
        RequestError: a tensor has a wrong shape, or a string is no UTF-8.
        LimitError: an image has too many pixels.
    """
    given = {
        name: _image(name, tensor, limits) if name in _IMAGES else _scalar(name, tensor)
        for name, tensor in tensors.items()
    }
    return cast(Request, given)


def tensors_of(result: Result[list[Image.Image]]) -> dict[str, NDArray[Any]]:
    """The outputs, by name; see :data:`OUTPUTS`."""
    texts = [str(infotext).encode() for infotext in result.infotexts]
    return {
        "images": np.stack([np.asarray(image.convert("RGB")) for image in result.images]),
        "seeds": np.array(result.seeds, np.int64),
        "infotexts": np.array(texts, np.object_),
    }


def _scalar(name: str, tensor: NDArray[Any]) -> object:
    if tensor.size != 1:
        raise RequestError(f"{name} must be one value, not {tensor.size}", name)
    value = tensor.reshape(-1)[0].item() if tensor.dtype != np.object_ else tensor.reshape(-1)[0]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name} must be text in UTF-8", name) from None


def _image(name: str, tensor: NDArray[Any], limits: RequestLimits) -> Image.Image:
    dims = _IMAGES[name]
    if tensor.ndim != len(dims) or (len(dims) == 3 and tensor.shape[2] != 3) or not tensor.size:
        raise RequestError(
            f"{name} must be uint8 of height, width{', 3' * (len(dims) == 3)}, "
            f"not {list(tensor.shape)}",
            name,
        )
    pixels = tensor.shape[0] * tensor.shape[1]
    if pixels > limits.input_pixels:
        raise LimitError(
            f"{name} has {pixels} pixels, and this server reads images of up to "
            f"{limits.input_pixels}",
            name,
        )
    return Image.fromarray(np.array(tensor, np.uint8))
