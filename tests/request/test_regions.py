"""Regions of a request: what they make of an image, what it says of them, and what is refused.

The tiny UNet predicts every latent from itself alone, so a part of an image is that of the image
whose whole prompt it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kdrt
from kdrt import Region
from tests.support.encoder import with_encoder
from tests.support.tiny_model import TinyModel

LEFT, RIGHT = Image.new("L", (48, 64)), Image.new("L", (48, 64))
LEFT.paste(255, (0, 0, 24, 64))
RIGHT.paste(255, (24, 0, 48, 64))
COMMON: dict[str, Any] = {
    "seed": [3, 4],
    "steps": 4,
    "sampler": "dpmpp_2m",
    "images_per_prompt": 2,
    "output_type": "latent",
}


def made(model: TinyModel, prompt: str = "a red circle", **fields: Any) -> Tensor:
    images: Tensor = model.pipeline(prompt, **{**COMMON, **fields}).images
    return images


def assert_half(actual: Tensor, expected: Tensor, half: str) -> None:
    columns = slice(0, 3) if half == "left" else slice(3, 6)
    torch.testing.assert_close(actual[..., columns], expected[..., columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_part_is_made_with_its_own_prompt(sdxl: TinyModel, guidance: float) -> None:
    fields: dict[str, Any] = {"guidance_scale": guidance, "region_base_weight": 0.0}
    actual = made(sdxl, regions=[Region("2 yellow stars", LEFT)], **fields)
    assert_half(actual, made(sdxl, "2 yellow stars", guidance_scale=guidance), "left")
    assert_half(actual, made(sdxl, guidance_scale=guidance), "right")
    both = [Region("2 yellow stars", LEFT), Region("a green square", RIGHT, 0.3)]
    actual = made(sdxl, regions=both, **fields)
    assert_half(actual, made(sdxl, "2 yellow stars", guidance_scale=guidance), "left")
    assert_half(actual, made(sdxl, "a green square", guidance_scale=guidance), "right")
    assert not torch.allclose(made(sdxl, regions=both, guidance_scale=guidance), actual)


def test_masks_may_be_arrays_and_are_shared_out_among_latents(sdxl: TinyModel) -> None:
    drawn = made(sdxl, regions=[Region("a star", LEFT)])
    array = np.array(LEFT)
    assert torch.equal(made(sdxl, regions=[Region("a star", array)]), drawn)
    assert torch.equal(made(sdxl, regions=[Region("a star", torch.from_numpy(array)[None])]), drawn)
    finer = array.repeat(3, 0).repeat(3, 1) / 255
    resized = made(sdxl, regions=[Region("a star", finer)])  # which makes its edge a little soft
    assert torch.equal(resized[..., [0, 1, 4, 5]], drawn[..., [0, 1, 4, 5]])
    torch.testing.assert_close(resized, drawn, rtol=0.1, atol=0.1)
    wider = Image.new("L", (48, 64))
    wider.paste(255, (0, 0, 28, 64))  # half of a latent more
    other = made(sdxl, regions=[Region("a star", wider)])
    assert_half(other, drawn, "left")
    assert not torch.equal(other[..., 3], drawn[..., 3])
    assert torch.equal(other[..., 4:], drawn[..., 4:])


def test_images_with_regions_share_runs(sdxl: TinyModel) -> None:
    requests: list[Any] = [
        {"prompt": "a", "regions": [Region("a star", LEFT), Region("a cross", RIGHT)]},
        {"prompt": "a red circle", "regions": [Region("a star " * 30, RIGHT)], "guidance_scale": 1},
        {"prompt": "a"},
    ]
    for request in requests:
        request |= {"seed": 5, "steps": 3, "prompt_weighting": "a1111"}
    with kdrt.Batcher(sdxl.pipeline, max_rows=8) as batcher:
        handles = [batcher.submit(request, output_type="latent") for request in requests]
        shared = [handle.result() for handle in handles]
        with pytest.raises(kdrt.InvalidRequestError, match=r"takes 10 rows .* 8 at most"):
            batcher.submit({"prompt": "a", "regions": [Region("a", LEFT)] * 8})
    for request, result in zip(requests, shared, strict=True):
        assert result.in_flight
        alone = sdxl.pipeline(**request, output_type="latent")
        assert torch.equal(result.images, alone.images)
        assert result.unet_rows == alone.unet_rows
    assert [result.unet_rows for result in shared] == [4 * 3, 2 * 3, 2 * 3]


def test_masks_are_of_whole_images_of_which_parts_are_made(sd: TinyModel) -> None:
    pipe = with_encoder(sd)
    masks = [Image.new("L", (96, 64)) for _ in range(2)]
    masks[0].paste(255, (0, 16, 32, 48))  # left of the middle
    masks[1].paste(255, (32, 16, 64, 48))  # half of it on either side
    region = Image.new("L", (96, 64))
    region.paste(255, (0, 0, 48, 64))
    fields: dict[str, Any] = {
        "image": Image.new("RGB", (96, 64), "grey"),
        "inpaint_padding": 0,
        "width": 32,
        "height": 32,
        "steps": 2,
        "seed": [3, 4],
        "images_per_prompt": 2,
        "output_type": "np",
    }

    def made(prompt: str, mask_image: Any, **more: Any) -> Any:
        return pipe(prompt, mask_image=mask_image, **fields, **more).images

    regions = [Region("2 yellow stars", region)]
    found = made("a", masks, regions=regions, region_base_weight=0.0)
    star, own = (made(prompt, masks) for prompt in ("2 yellow stars", "a"))
    assert np.array_equal(found[0], star[0])
    assert not np.array_equal(found[0], own[0])
    left, right = (slice(None), slice(32, 48)), (slice(None), slice(48, 64))
    for half, wanted, other in ((left, star, own), (right, own, star)):
        assert np.allclose(found[1][half], wanted[1][half], atol=1e-5)
        assert not np.allclose(found[1][half], other[1][half], atol=1e-2)


def test_a_second_pass_has_the_same_regions(sdxl: TinyModel) -> None:
    array = np.array(LEFT)
    fields: dict[str, Any] = {"seed": 3, "steps": 4, "hires_scale": 2, "output_type": "latent"}
    result = sdxl.pipeline("a", regions=[Region("a star", array)], region_base_weight=0, **fields)
    star, own = (sdxl.pipeline(prompt, **fields).images for prompt in ("a star", "a"))
    # Enlarging mixes the two parts where they meet.
    torch.testing.assert_close(result.images[..., :4], star[..., :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.images[..., 8:], own[..., 8:], rtol=1e-4, atol=1e-4)
    assert result.unet_rows == 3 * (4 + 4)


def test_an_image_says_its_regions(sdxl: TinyModel, tmp_path: Path) -> None:
    regions = [Region("a star", LEFT), Region("a cross, small", RIGHT, 0.5)]
    result = sdxl.pipeline("a", regions=regions, region_base_weight=0.1, steps=1, seed=1)
    text = str(result.infotexts[0])
    assert 'Regions: "a star | a cross, small (weight 0.5)", Region base weight: 0.1' in text
    result.save(tmp_path / "image.png")
    with pytest.warns(UserWarning, match="not taken over from the image: Regions"):
        request = kdrt.request_from(tmp_path / "image.png")
    assert "regions" not in request


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regions": "a star"}, "regions must be a list such as"),
        ({"regions": [("a star", LEFT)]}, "regions must be a list such as"),
        ({"regions": []}, "these are 0 regions; give from 1 to 8"),
        ({"regions": [Region("a", LEFT)] * 9}, "these are 9 regions"),
        ({"regions": [Region("a", Image.new("L", (8, 8)))]}, "mask of region 1 is black"),
        ({"regions": [Region("a", LEFT), Region("a", "left.png")]}, "the mask of region 2"),
        ({"regions": [Region("a", LEFT, 0.0)]}, "the weight of region 1 must be a number above 0"),
        ({"regions": [Region(3, LEFT)]}, "the prompts of regions"),  # type: ignore[arg-type]
        ({"region_base_weight": 0.5}, "region_base_weight belongs to regions"),
    ],
)
def test_what_is_no_region_is_refused(
    sdxl: TinyModel, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=message):
        sdxl.pipeline("a", **fields)
