"""The benchmark of lossy modes: its arithmetic, and its table."""

from __future__ import annotations

import numpy as np
import pytest

import lossy


def test_psnr_is_a_mean_over_images() -> None:
    wanted = np.zeros((2, 4, 4, 3))
    pixels = wanted.copy()
    pixels[0] = 0.1  # 20 dB; the other is equal
    assert lossy._psnr(pixels, wanted) == pytest.approx((20 + 100) / 2)


def test_the_share_of_operations() -> None:
    """Of SD 1.5's UNet, against a count by hand in multiplications: the last layer's convolutions
    and transformer at 64x64, conv_in and conv_out, over 401.7 G for the whole."""
    pixels, width = 64 * 64, 320
    resnet = pixels * (9 * 2 * width * width + 9 * width * width + 2 * width * width)
    attention = pixels * (4 + 2 + 8 + 4 + 2) * width * width + 2 * pixels * pixels * width
    cross = 2 * 77 * 768 * width + 2 * pixels * 77 * width
    ends = 2 * pixels * 9 * 4 * width
    by_hand = (resnet + attention + cross + ends) / 401.7e9
    assert lossy.cached_share("SD 1.5") == pytest.approx(by_hand, rel=0.02)
    assert "1.60 x at interval 2, 2.00 x at interval 3" in lossy._fewer(0.25)


def test_the_tables_have_every_row() -> None:
    rows = [
        lossy.Row("plain", 1.0, None, None, 0.9, 20.0),
        lossy.Row("deep cache 3", 1.5, 0.123456, 31.4, 0.4, 20.0),
    ]
    told = {"machine": {"cpu": "x"}, "prompts": 1, "steps": 2, "batch": 3, "rounds": 4}
    text = lossy._markdown(rows, {"SDXL": 0.25}, told)
    assert "| deep cache 3 | 1.50 x | 0.123 | 31.4 dB | 40.0% | 20.0 MB |" in text
    assert "| plain | 1.00 x | – | – | 90.0% | 20.0 MB |" in text
    assert "SDXL, counted: the shallow UNet is 25.0%" in text
