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


def rows(*strengths: float) -> torch.Tensor:
    """One strength for each image, [B, 1]."""
    return torch.tensor(strengths)[:, None]


@settings(max_examples=60)
@given(height=side, width=side, s=st.tuples(strength, strength), seed=st.integers(0, 1000))
def test_equals_the_fft_at_every_size(
    height: int, width: int, s: tuple[float, float], seed: int
) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.7
    images = zip(x.split(1), s, strict=True)
    expected = torch.cat([fourier_filter(image, threshold=1, scale=own) for image, own in images])
    torch.testing.assert_close(scale_low_frequencies(x, rows(*s)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 16), (7, 5), (1, 6), (2, 2)])
@pytest.mark.parametrize("block", [0, 1])
def test_equals_freeu_of_a_whole_block(height: int, width: int, block: int) -> None:
    """diffusers' FreeU, which has one set of strengths for a batch, on each image by itself."""
    generator = torch.Generator().manual_seed(height * 31 + width)
    hidden = torch.randn(3, 10, height, width, generator=generator)
    skip = torch.randn(3, 6, height, width, generator=generator)
    b, s = (1.3, 1.0, 0.7), (0.8, 0.25, 1.0)
    ours = scale_backbone(hidden, rows(*b)), scale_low_frequencies(skip, rows(*s))
    for image in range(3):
        own = slice(image, image + 1)
        both = {"b1": b[image], "b2": b[image], "s1": s[image], "s2": s[image]}
        expected = apply_freeu(block, hidden[own].clone(), skip[own], **both)
        for out, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(out[own], reference, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7)])
def test_an_image_is_the_same_beside_another(height: int, width: int) -> None:
    """One with other strengths, or at 1 with none at all."""
    x = torch.randn(3, 6, height, width)
    strengths = rows(0.2, 1.0, 1.7)
    for scale in (scale_backbone, scale_low_frequencies):
        together = scale(x, strengths)
        alone = [scale(*each) for each in zip(x.split(1), strengths.split(1), strict=True)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
        assert torch.equal(together[1], x[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_is_exactly_off(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 9, 7).to(dtype)
    assert torch.equal(scale_low_frequencies(x, rows(1.0, 1.0)), x)
    assert torch.equal(scale_backbone(x, rows(1.0, 1.0)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x = torch.randn(1, 4, 16, 12).to(dtype)
    exact = scale_low_frequencies(x.float(), rows(0.2))
    assert torch.equal(scale_low_frequencies(x, rows(0.2)), exact.to(dtype))


def test_zero_is_a_strength_and_not_off() -> None:
    x = torch.randn(1, 1, 8, 8) + 3
    assert abs(float(scale_low_frequencies(x, rows(0.0)).mean())) < 1e-5
