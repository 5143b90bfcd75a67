"""Which layers are left as they are, and what may be lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt.bundle import QuantizationLoss, StepLoss
from kdrt.errors import InvalidRequestError
from kdrt_export.errors import VerificationError
from kdrt_export.quantize.layers import QuantizableLayer
from kdrt_export.quantize.loss import check_loss, likeness
from kdrt_export.quantize.sensitivity import choose


def layers(count: int) -> list[QuantizableLayer]:
    return [QuantizableLayer(f"l{n}", "linear", (f"n{n}",), ("x",), f"w{n}") for n in range(count)]


@given(st.lists(st.floats(0, 1) | st.just(math.inf), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_the_fewest_layers_are_left(errors: list[float], bound: float) -> None:
    if min(errors) > bound:
        with pytest.raises(InvalidRequestError, match="no layer can be quantised"):
            choose(layers(len(errors)), errors, bound)
        return
    rows = choose(layers(len(errors)), errors, bound)
    assert [row.error for row in rows] == errors
    kept = sorted(row.error for row in rows if row.is_quantized)
    left = sorted(row.error for row in rows if not row.is_quantized)
    assert sum(error**2 for error in kept) <= bound**2 * (1 + 1e-9)
    if left:  # with one more it would be above, whichever it is
        assert kept[-1] <= left[0]
        assert sum(error**2 for error in [*kept, left[0]]) > bound**2 * (1 - 1e-9)


def loss(error: float, **fidelity: float) -> QuantizationLoss:
    steps = (StepLoss(sigma=1.0, error=error), StepLoss(sigma=0.5, error=error))
    return QuantizationLoss(
        steps=steps, images=1, height=8, width=8, psnr=30.0, ssim=0.9, **fidelity
    )


def test_the_error_of_an_evaluation_is_over_all_steps() -> None:
    steps = (StepLoss(sigma=2.0, error=0.3), StepLoss(sigma=1.0, error=0.4))
    whole = QuantizationLoss(steps=steps, images=1, height=8, width=8, psnr=None, ssim=1.0)
    assert whole.error == pytest.approx(math.sqrt((0.09 + 0.16) / 2))


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (loss(0.061), "off by 0.061, and its layers were chosen for 0.03"),
        (loss(math.nextafter(1e6, 0)), "calibrate with more prompts"),
        (loss(0.01, fidelity=0.87, fidelity_before=0.9), "draws 87.0% of the prompts"),
    ],
)
def test_what_loses_too_much_is_refused(measured: QuantizationLoss, sentence: str) -> None:
    with pytest.raises(VerificationError, match=sentence):
        check_loss(measured, 0.03)


def test_what_loses_little_is_kept() -> None:
    check_loss(loss(0.059), 0.03)
    check_loss(loss(0.03, fidelity=0.88, fidelity_before=0.9), 0.03)
    check_loss(loss(0.03, fidelity=0.95, fidelity_before=0.9), 0.03)


def test_likeness_beside_the_formula() -> None:
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(0)
    reference = rng.random((24, 17, 3)).astype(np.float32)
    noisy = np.clip(reference + rng.normal(0, 0.05, reference.shape), 0, 1).astype(np.float32)
    psnr, ssim = likeness([noisy, reference], [reference, reference])
    square = float(np.mean((noisy.astype(np.float64) - reference) ** 2))
    assert psnr == pytest.approx(-10 * math.log10(square))  # the other image is equal
    assert 0.9 < ssim < 1
    psnr, ssim = likeness([reference], [reference])
    assert psnr is None
    assert ssim == pytest.approx(1.0)
