"""How alike two results are: no speed is quoted without it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kdrt_bench.jobs import Strict
from kdrt_export.quantize.likeness import psnr_and_ssim


class Likeness(Strict):
    """Of what a row made to what the anchor made, from the same noise.

    Attributes:
        relative_error: ``‖a − b‖ / ‖b‖`` over all outputs, in float64.
        psnr: decibels, for images; None where they are equal bit for bit, or no images.
        ssim: structural similarity (Wang et al. 2004), 1 for equal images.
        equal: bit for bit.
    """

    relative_error: float
    psnr: float | None = None
    ssim: float | None = None
    equal: bool = False


def likeness(
    outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray], *, images: bool
) -> Likeness:
    """Compare what two rows made.

    Args:
        outputs: arrays in the order of the workload's outputs.
        reference: the anchor's.
        images: they are float32 ``[B, H, W, 3]`` in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if [o.shape for o in outputs] != [r.shape for r in reference]:
        raise ValueError("outputs of different shapes cannot be compared")
    worst = max(map(_relative_error, outputs, reference))
    equal = all(map(np.array_equal, outputs, reference))
    if not images:
        return Likeness(relative_error=worst, equal=equal)
    psnr, ssim = psnr_and_ssim(outputs[0], reference[0])
    return Likeness(
        relative_error=worst,
        psnr=psnr if math.isfinite(psnr) else None,
        ssim=ssim,
        equal=equal,
    )


def _relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    wanted = reference.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    difference = float(np.linalg.norm(output.astype(np.float64) - wanted))
    return difference / norm if norm else difference
