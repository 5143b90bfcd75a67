"""How alike images are, by torchmetrics."""

from __future__ import annotations

import numpy as np
import torch

_WINDOW = 11
"""Pixels: side of SSIM's window (Wang et al. 2004)."""


def psnr_and_ssim(images: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """PSNR in decibels (infinite for equal images) and structural similarity, over a batch.

    Args:
        images, references: float32 ``[B, H, W, 3]`` in [0, 1].
    """
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    # In float64: two float32 images can be closer than float32 sums of squares resolve.
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (images, references))
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0)
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, kernel_size=_WINDOW)
    assert isinstance(ssim, torch.Tensor)
    return float(psnr), float(ssim)
