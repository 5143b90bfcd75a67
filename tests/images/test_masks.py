"""Masks inverted, grown and blurred."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdrt.images.masks import blurred, grown, inverted, shaped


def random_mask(seed: int, height: int = 9, width: int = 12) -> Tensor:
    return (
        torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.8
    ).float()


@given(st.integers(0, 99), st.integers(-6, 6))
def test_growing_looks_at_all_pixels_around(seed: int, pixels: int) -> None:
    mask = random_mask(seed)
    found = grown(mask, pixels)
    reach, pick = abs(pixels), (torch.amax if pixels > 0 else torch.amin)
    for row, column in ((0, 0), (4, 6), (8, 11)):
        window = mask[
            ...,
            max(0, row - reach) : row + reach + 1,
            max(0, column - reach) : column + reach + 1,
        ]
        assert torch.equal(found[..., row, column], pick(window, dim=(2, 3)))


@given(st.integers(0, 99), st.integers(0, 4), st.integers(0, 40))
def test_growing_twice_is_growing_by_the_sum(seed: int, first: int, second: int) -> None:
    mask = random_mask(seed)
    assert torch.equal(grown(grown(mask, first), second), grown(mask, first + second))
    opened = grown(grown(mask, -first), first)
    assert torch.equal(grown(grown(opened, -first), first), opened)
    assert torch.all(opened <= mask)


def test_a_blur_softens_the_edge_and_leaves_what_is_far_from_it() -> None:
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., 30:] = 1
    soft = blurred(mask, 4)
    assert torch.equal(soft[..., :10], mask[..., :10])
    assert torch.equal(soft[..., 50:], mask[..., 50:])
    row = soft[0, 0, 20]
    assert torch.all(row.diff() >= 0)
    # At a distance of a standard deviation a Gaussian's step is at 16 %.
    assert row[26].item() == pytest.approx(0.19, abs=0.03)
    assert blurred(mask, 0) is mask


def test_a_mask_is_inverted_then_grown_then_blurred() -> None:
    mask = random_mask(1)
    expected = blurred(grown(inverted(mask), 2), 1.5)
    assert torch.equal(shaped(mask, invert=True, grow=2, blur=1.5), expected)
    assert torch.equal(shaped(mask), mask)
