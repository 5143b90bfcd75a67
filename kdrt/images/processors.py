"""From a picture of anything to the kind of image that a ControlNet was trained on.

    canny      edges, white on black, with the thresholds that ControlNets were trained with
    scribble   a drawing with dark lines on light ground: white lines on black
    invert     black and white change places
    depth      from the nearest and the farthest of a depth map to white and black
    tile       the picture itself, for the controls that add detail to it

All work on images of the size of the result. What needs a network, such as depth or poses of
photographs, is made elsewhere and given as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kdrt.common.validation import unknown_word
from kdrt.errors import InvalidRequestError

Processor = Callable[[Tensor], Tensor]
"""A function from pixels float32 ``[3, H, W]`` in [0, 1] to pixels of the same form."""

_LOW, _HIGH = 100, 200
"""Of the gradient, where edges end and begin."""


def canny(pixels: Tensor, low: int = _LOW, high: int = _HIGH) -> Tensor:
    """The edges of an image, white on black (Canny 1986, by OpenCV).

    Args:
        pixels: float32 ``[3, H, W]`` in [0, 1].
        low: an edge continues while the gradient is above this.
        high: an edge begins where the gradient is above this.

    Raises:
        InvalidRequestError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InvalidRequestError(
            "the processor 'canny' needs OpenCV: pip install 'kdrt[control]', or give the edges "
            "themselves, white on black"
        ) from error
    image = pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    edges = torch.from_numpy(cv2.Canny(image, low, high))
    return edges.to(torch.float32).div_(255).expand(3, *edges.shape).clone()


def scribble(pixels: Tensor) -> Tensor:
    """The dark lines of a drawing, as white on black; float32 ``[3, H, W]`` in [0, 1]."""
    dark = pixels.mean(0, keepdim=True) < 0.5
    return dark.to(pixels).expand_as(pixels).clone()


def invert(pixels: Tensor) -> Tensor:
    """The image with black and white exchanged; float32 ``[3, H, W]`` in [0, 1]."""
    return 1 - pixels


def depth(pixels: Tensor) -> Tensor:
    """The values of a depth map, stretched to the whole range; float32 ``[3, H, W]`` in [0, 1]."""
    low, high = pixels.aminmax()
    return (pixels - low) / (high - low).clamp(min=torch.finfo(pixels.dtype).tiny)


def tile(pixels: Tensor) -> Tensor:
    """The image itself, unchanged; float32 ``[3, H, W]`` in [0, 1]."""
    return pixels


PROCESSORS: Mapping[str, Processor] = {
    "canny": canny,
    "scribble": scribble,
    "invert": invert,
    "depth": depth,
    "tile": tile,
}


def find_processor(name: object) -> Processor:
    """The processor of that name.

    Raises:
        InvalidRequestError: there is none.
    """
    if not isinstance(name, str) or name not in PROCESSORS:
        raise InvalidRequestError(unknown_word("process", name, PROCESSORS))
    return PROCESSORS[name]
