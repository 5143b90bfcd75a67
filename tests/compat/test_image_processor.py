"""The image processor of the drop-in classes, on images of every mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kdrt.compat.image_processor import VaeImageProcessor

HIDDEN = Image.new("RGBA", (8, 8), (255, 0, 255, 0))
HALF = Image.fromarray(np.full((8, 8), 32768, np.uint16))


@pytest.mark.parametrize(
    ("image", "value"), [(HIDDEN, 1.0), (HALF, 0.0)], ids=["transparent", "16 bits"]
)
def test_images_are_seen_as_they_are(image: Image.Image, value: float) -> None:
    processor = VaeImageProcessor()
    pixels = processor.preprocess(image)
    assert pixels.shape == (1, 3, 8, 8)
    assert torch.allclose(pixels, torch.full_like(pixels, value), atol=0.005)
    grey = 255 * (value + 1) / 2
    rgb, one = processor.convert_to_rgb(image), processor.convert_to_grayscale(image)
    assert abs(np.asarray(rgb)[0, 0, 0] - grey) < 1
    assert abs(np.asarray(one)[0, 0] - grey) < 1
