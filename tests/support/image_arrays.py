"""Images of one form, where a call's options are data and say which."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def as_tensor(images: object) -> Tensor:
    """What ``output_type="pt"`` and ``"latent"`` give."""
    assert isinstance(images, Tensor)
    return images


def as_array(images: object) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What ``output_type="np"`` gives."""
    assert isinstance(images, np.ndarray)
    return images


def as_pil(images: object) -> list[Image.Image]:
    """What ``output_type="pil"`` gives."""
    assert isinstance(images, list)
    return images
