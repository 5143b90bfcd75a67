"""FreeU without an FFT equals diffusers' FreeU with one."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu, fourier_filter
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt_export.rewrites.freeu import scale_backbone, scale_low_frequencies

strength = st.floats(-1.0, 3.0, width=32)
side = st.integers(1, 33)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value])


@settings(max_examples=60)
@given(height=side, width=side, s=strength, seed=st.integers(0, 1000))
def test_equals_the_fft_at_every_size(height: int, width: int, s: float, seed: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.7
    expected = fourier_filter(x, threshold=1, scale=s)
    torch.testing.assert_close(scale_low_frequencies(x, scalar(s)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 16), (7, 5), (1, 6), (2, 2)])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_equals_freeu_of_a_whole_block(height: int, width: int, block: int) -> None:
    generator = torch.Generator().manual_seed(height * 31 + width)
    hidden = torch.randn(2, 10, height, width, generator=generator)
    skip = torch.randn(2, 6, height, width, generator=generator)
    b, s = (1.3, 1.6), (0.8, 0.25)
    expected = apply_freeu(block, hidden.clone(), skip, s1=s[0], s2=s[1], b1=b[0], b2=b[1])
    ours = (hidden, skip)
    if block < 2:
        ours = (
            scale_backbone(hidden, scalar(b[block])),
            scale_low_frequencies(skip, scalar(s[block])),
        )
    for out, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_is_exactly_off(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 9, 7).to(dtype)
    assert torch.equal(scale_low_frequencies(x, scalar(1.0)), x)
    assert torch.equal(scale_backbone(x, scalar(1.0)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x = torch.randn(1, 4, 16, 12).to(dtype)
    exact = scale_low_frequencies(x.float(), scalar(0.2))
    assert torch.equal(scale_low_frequencies(x, scalar(0.2)), exact.to(dtype))


def test_zero_is_a_strength_and_not_off() -> None:
    x = torch.randn(1, 1, 8, 8) + 3
    assert abs(float(scale_low_frequencies(x, scalar(0.0)).mean())) < 1e-5
