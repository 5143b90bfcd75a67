"""Likeness, against its definitions."""

from __future__ import annotations

import numpy as np
import pytest

from kdrt_bench.likeness import likeness


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 24, 24, 3), dtype=np.float32)


def test_equal_images() -> None:
    found = likeness([images()], [images()], images=True)
    assert found.equal
    assert found.psnr is None
    assert found.ssim == pytest.approx(1)
    assert found.relative_error == 0


def test_psnr_of_a_constant_difference() -> None:
    found = likeness([images() * 0.9 + 0.1], [images() * 0.9], images=True)
    assert found.psnr == pytest.approx(20, abs=1e-4)
    assert not found.equal


def test_ssim_falls_with_what_is_not_alike() -> None:
    reference = images()
    near = likeness([reference + 0.02 * images(1)], [reference], images=True)
    far = likeness([images(1)], [reference], images=True)
    assert near.ssim is not None
    assert far.ssim is not None
    assert near.ssim > 0.95 > 0.2 > far.ssim


def test_tiny_differences_are_told_apart() -> None:
    reference = images()
    found = likeness([reference + np.float32(1e-6)], [reference], images=True)
    assert found.psnr is not None
    assert 110 < found.psnr < 130


def test_the_worst_output_counts() -> None:
    a, b = np.ones(4, np.float32), np.full(4, 2, np.float32)
    found = likeness([a, a * 1.5], [a, b], images=False)
    assert found.relative_error == pytest.approx(0.25)
    assert found.psnr is None


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        likeness([np.ones(3)], [np.ones(4)], images=False)
