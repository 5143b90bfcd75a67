"""Networks that enlarge images, in tiles and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdrt.bundle import UpscalerFacts
from kdrt.errors import InvalidRequestError, NonFiniteError
from kdrt.images.upscaler import Upscaler
from kdrt.images.upscaling import find_upscaler
from tests.support.enlarging import Enlarging, enlarging_engine, upscaler_facts

REACH = 3
"""Pixels around one that three convolutions of three see."""


class Convolutions(nn.Module):
    """Enlarges twice; sees ``REACH`` pixels in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1)) / 9

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(REACH):
            image = nn.functional.conv2d(image, self.kernel, padding=1).sigmoid()
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)


def tiled(tile: int, margin: int, image: Tensor) -> tuple[Tensor, Tensor]:
    """What the network makes of it in tiles, and whole."""
    whole = upscaler_facts(scale=2, tile=4096, margin=0)
    network = Convolutions()
    made, expected = (
        Upscaler(enlarging_engine(network, 2), facts)(image)
        for facts in (upscaler_facts(scale=2, tile=tile, margin=margin), whole)
    )
    return made, expected


@settings(max_examples=15)
@example(height=17, width=60, tile=17, margin=4)
@example(height=100, width=16, tile=16, margin=3)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.integers(21, 40),
    margin=st.integers(REACH, 5),
)
def test_tiles_make_what_the_whole_makes(height: int, width: int, tile: int, margin: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    made, expected = tiled(tile, margin, image)
    assert made.shape == (1, 3, 2 * height, 2 * width)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_with_less_context_than_it_sees_tiles_are_faded() -> None:
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    made, expected = tiled(24, 1, image)
    off = (made - expected).abs()
    assert 1e-6 < off.max() < 0.05
    # No line of the image is apart from its neighbour where two tiles meet.
    steps = (off[..., 1:] - off[..., :-1]).abs().max()
    assert steps < 0.05


def test_no_more_than_a_tile_is_run_at_once() -> None:
    network = Enlarging(2)
    upscaler = Upscaler(enlarging_engine(network, 2), upscaler_facts(scale=2, tile=20, margin=2))
    image = torch.rand(1, 3, 50, 13)
    torch.testing.assert_close(upscaler(image), network(image), rtol=0, atol=1e-6)
    assert {tuple(shape[2:]) for shape in network.shapes[:-1]} == {(20, 13)}


def test_pixels_that_are_not_finite_are_refused() -> None:
    class Overflowing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.repeat_interleave(2, 2).repeat_interleave(2, 3) * torch.inf

    upscaler = Upscaler(enlarging_engine(Overflowing(), 2), upscaler_facts(scale=2))
    with pytest.raises(NonFiniteError, match="another hires_upscaler"):
        upscaler(torch.ones(1, 3, 8, 8))


def test_networks_are_found_by_name() -> None:
    models = {"4x-sharp": upscaler_facts(scale=4)}
    assert find_upscaler("4x_Sharp", models) == "4x-sharp"
    assert find_upscaler("Lanczos", models) == "lanczos"
    with pytest.raises(InvalidRequestError, match=r"nearest, 4x-sharp.*kdrt add upscaler"):
        find_upscaler("4x-UltraMix", models)


@pytest.mark.parametrize("change", [{"tile": 16, "margin": 4}, {"scale": 0}, {"sha256": "it"}])
def test_facts_that_could_not_be_used(change: dict[str, Any]) -> None:
    whole = upscaler_facts(scale=4).model_dump()
    with pytest.raises(ValueError, match=r"four margins|scale|sha256"):
        UpscalerFacts.model_validate({**whole, **change})
