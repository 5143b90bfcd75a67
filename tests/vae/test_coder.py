from __future__ import annotations

import pytest
import torch

from kdrt.errors import NonFiniteError
from kdrt.vae.coder import Decoder, check_latents
from tests.support.tiny_model import CHANNELS, SCALE, TinyModel, tiny_vae_decoder


@pytest.mark.parametrize(("batch", "slices"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_slices_of_the_batch(sdxl: TinyModel, batch: int, slices: list[int]) -> None:
    latents = torch.randn(5, CHANNELS, 3, 4)
    pixels = Decoder(sdxl.pipeline.engines["vae_decoder"], batch)(latents)
    assert pixels.shape == (5, 3, 3 * SCALE, 4 * SCALE)
    assert torch.equal(pixels, tiny_vae_decoder(latents))
    assert [len(call["latents"]) for call in sdxl.vae_decoder.calls] == slices


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_latents_must_be_finite(value: float) -> None:
    latents = torch.zeros(2, CHANNELS, 3, 4)
    check_latents(latents)
    latents[1, 2, 1, 3] = value
    with pytest.raises(NonFiniteError, match="lower guidance_scale"):
        check_latents(latents)
