"""The masked part of an image: cut out, and put back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdrt.images.masked_part import Box, MaskedPart, box_around, resized


def mask_of(box: Box, height: int = 128, width: int = 128) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    box.cut(mask).fill_(1)
    return mask


@pytest.mark.parametrize(
    ("masked", "padding", "size", "part"),
    [
        ((80, 40, 96, 56), 8, (64, 64), (72, 32, 104, 64)),
        ((0, 0, 16, 16), 8, (64, 64), (0, 0, 24, 24)),
        ((80, 40, 96, 48), 0, (64, 64), (80, 36, 96, 52)),  # as high as it is wide
        ((112, 40, 128, 72), 0, (64, 64), (96, 40, 128, 72)),  # no room on the right
        ((60, 0, 68, 128), 0, (32, 64), (0, 0, 128, 128)),  # no room on either side
    ],
)
def test_a_part_has_the_proportions_of_the_result_where_there_is_room(
    masked: tuple[int, int, int, int],
    padding: int,
    size: tuple[int, int],
    part: tuple[int, int, int, int],
) -> None:
    assert box_around(mask_of(Box(*masked))[0, 0], padding, *size) == part


sides = st.integers(1, 48)


@given(sides, sides, st.integers(0, 60), sides, sides, st.data())
def test_a_part_holds_all_that_is_masked_and_lies_in_the_image(
    height: int, width: int, padding: int, rows: int, columns: int, data: st.DataObject
) -> None:
    mask = torch.zeros(height, width)
    for _ in range(data.draw(st.integers(1, 3))):
        row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        mask[row, column] = 0.01
    box = box_around(mask, padding, rows, columns)
    assert box is not None
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height
    assert box.cut(mask).sum() == mask.sum()


@given(st.integers(0, 10_000))
def test_putting_back_changes_nothing_outside_of_the_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(2, 3, 40, 50, generator=generator) * 2 - 1
    mask = torch.rand(2, 1, 40, 50, generator=generator)
    mask[mask < 0.995] = 0
    mask[:, :, 7, 9] = 1
    part = MaskedPart.around(pixels, mask, 3, 24, 16)
    assert part is not None
    cut, masked = part.cut(24, 16)
    assert cut.shape == (2, 3, 24, 16)
    assert masked.shape == (2, 1, 24, 16)
    whole = part.put_back(torch.rand(2, 3, 24, 16, generator=generator))
    kept = (mask == 0).expand_as(pixels)
    assert torch.equal(whole[kept], pixels[kept])
    assert not torch.equal(whole[~kept], pixels[~kept])


def test_putting_back_twice_is_putting_back_once() -> None:
    pixels, mask = torch.zeros(1, 3, 40, 50), mask_of(Box(10, 12, 30, 28), 40, 50)
    part = MaskedPart.around(pixels, mask, 4, 32, 32)
    assert part is not None
    made = torch.rand(1, 3, 32, 32)
    once = part.put_back(made)
    again = MaskedPart(once, mask, part.boxes).put_back(made)
    assert torch.equal(once, again)


def test_a_part_of_the_size_that_it_is_made_at_is_not_resampled() -> None:
    pixels, mask = torch.rand(1, 3, 64, 64), mask_of(Box(16, 16, 48, 48), 64, 64)
    part = MaskedPart.around(pixels, mask, 0, 32, 32)
    assert part is not None
    cut, masked = part.cut(32, 32)
    assert torch.equal(cut, pixels[..., 16:48, 16:48])
    assert torch.equal(masked, torch.ones(1, 1, 32, 32))
    assert torch.equal(part.put_back(cut), pixels)


def test_where_nothing_is_masked_there_is_no_part() -> None:
    mask = torch.stack([mask_of(Box(0, 0, 8, 8))[0], torch.zeros(1, 128, 128)])
    assert MaskedPart.around(torch.zeros(2, 3, 128, 128), mask, 0, 64, 64) is None


def test_resizing_keeps_planes_apart() -> None:
    planes = torch.stack([torch.full((8, 6), value) for value in (-1.0, 0.25, 1.0)])
    found = resized(planes, 20, 30)
    assert found.shape == (3, 20, 30)
    torch.testing.assert_close(found.mean((1, 2)), torch.tensor([-1.0, 0.25, 1.0]))
