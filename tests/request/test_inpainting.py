"""How a mask is used: its shape, what lies under it to begin with, and the masked part alone."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdrt.common.literals import InpaintFill
from kdrt.errors import InvalidRequestError
from kdrt.images.init_image import InitImage
from kdrt.images.masks import shaped
from kdrt.images.under_mask import with_colours_around
from kdrt.pipeline.image_to_image import begin_with_image
from kdrt.pipeline.pipeline import Pipeline
from tests.support.encoder import with_encoder
from tests.support.plans import fixed_plan
from tests.support.tiny_model import TinyModel

SIDE, SCALE = 64, 8
GREY = Image.new("RGB", (48, 64), (90, 120, 60))
WHITE = Image.new("L", (48, 64), 255)


def square(value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros((64, 48), np.uint8)
    mask[16:40, 8:32] = value
    return mask


def picture(height: int = 64, width: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("fill", get_args(InpaintFill))
@pytest.mark.parametrize("inpaints", [False, True])
@pytest.mark.parametrize("anew", [False, True])
def test_what_a_run_begins_with_under_the_mask(
    fill: InpaintFill, *, inpaints: bool, anew: bool
) -> None:
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 16:40, 8:32] = 1
    image = InitImage(
        pixels=pixels,
        latents=None,
        mask=mask,
        soft=False,
        fill=fill,
        anew=anew,
        keep_unmasked=True,
        part=None,
        height=SIDE,
        width=SIDE,
    )

    def encode(pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, SCALE)

    unit, sigma = torch.randn(1, 3, 8, 8), 4.0
    plan = fixed_plan("euler", [sigma, 0.0])
    state, region, _ = begin_with_image(
        image, unit * sigma, encode, plan=plan, scale=SCALE, inpaints=inpaints
    )
    known = encode(with_colours_around(pixels, mask) if fill == "blurred" else pixels)
    nothing = torch.zeros_like(known)
    under = {
        "original": nothing if anew else known,
        "blurred": known,
        "noise": unit,
        "nothing": nothing,
    }
    masked = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    masked[..., 2:5, 1:4] = True
    clean = state - unit * sigma
    torch.testing.assert_close(clean[masked], under[fill][masked], rtol=1e-5, atol=1e-5)
    kept = nothing if inpaints and anew and fill == "original" else known
    torch.testing.assert_close(clean[~masked], kept[~masked], rtol=1e-5, atol=1e-5)
    assert (region is None) == inpaints


def test_colours_flow_under_the_mask_from_around_it() -> None:
    pixels = torch.full((1, 3, SIDE, SIDE), -1.0)
    pixels[:, 0] = 1  # red, and in it blue
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 20:44, 20:44] = 1
    pixels[:, :, 24:40, 24:40] = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    filled = with_colours_around(pixels, mask)
    assert filled[0, 0, 32, 32] > 0.95
    assert filled[0, 2, 32, 32] < -0.95
    kept = (mask == 0).expand_as(pixels)
    assert torch.equal(filled[kept], pixels[kept])


def test_a_mask_in_another_shape_is_that_mask(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    options: dict[str, Any] = {"image": GREY, "steps": 3, "seed": 1, "output_type": "pt"}
    by_fields = pipe(
        "a", mask_image=square(), mask_invert=True, mask_grow=-3, mask_blur=2, **options
    )
    own = torch.from_numpy(square()).div(255)[None, None]
    mask = shaped(own, invert=True, grow=-3, blur=2)
    assert torch.equal(by_fields.images, pipe("a", mask_image=mask, **options).images)
    assert not torch.equal(by_fields.images, pipe("a", mask_image=square(), **options).images)


def test_each_fill_makes_another_image_and_is_told(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    made = {}
    for fill in get_args(InpaintFill):
        result = pipe(
            "a",
            image=picture(),
            mask_image=square(),
            inpaint_fill=fill,
            strength=0.5,
            steps=4,
            seed=1,
        )
        made[result.images[0].tobytes()] = fill
        told = dict(result.infotexts[0].extras)
        assert told.get("Masked content", "original") == fill
    assert len(made) == 4


def pasted(pipe: Pipeline, **options: Any) -> NDArray[np.uint8]:
    mask = np.zeros((80, 100), np.uint8)
    mask[30:40, 50:66] = 255
    result = pipe("a", image=picture(80, 100), mask_image=mask, steps=3, seed=1, **options)
    return np.asarray(result.images[0])


def test_the_masked_part_alone_is_made_at_the_size_asked_for(sdxl: TinyModel) -> None:
    """The image's own size, of which neither side need be a multiple of the VAE's scale."""
    pipe = with_encoder(sdxl)
    calls = len(sdxl.unet.calls)
    made = pasted(pipe, inpaint_padding=4, width=48, height=32)
    assert made.shape == (80, 100, 3)
    assert {tuple(call["sample"].shape[2:]) for call in sdxl.unet.calls[calls:]} == {(4, 6)}
    before = np.asarray(picture(80, 100))
    changed = (made != before).any(-1)
    assert changed[30:40, 50:66].mean() > 0.9
    changed[30:40, 50:66] = False
    assert not changed.any()
    # Without a size it is the model's.
    calls = len(sdxl.unet.calls)
    pasted(pipe, inpaint_padding=4)
    assert {tuple(call["sample"].shape[2:]) for call in sdxl.unet.calls[calls:]} == {(8, 6)}


def test_each_image_has_a_part_of_its_own(sdxl: TinyModel) -> None:
    pipe = with_encoder(sdxl)
    masks = [np.zeros((64, 48), np.uint8) for _ in range(2)]
    masks[0][:8, :8], masks[1][50:60, 30:40] = 255, 255
    options: dict[str, Any] = {"inpaint_padding": 2, "steps": 2, "output_type": "pt"}
    both = pipe(
        ["a", "b"],
        image=GREY,
        mask_image=[Image.fromarray(m) for m in masks],
        seed=[3, 4],
        **options,
    )
    for index, (prompt, mask, seed) in enumerate(zip("ab", masks, (3, 4), strict=True)):
        alone = pipe(prompt, image=GREY, mask_image=mask, seed=seed, **options)
        torch.testing.assert_close(both.images[index], alone.images[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_blur": 3}, "mask_blur says how to use mask_image, and there is none"),
        ({"inpaint_fill": "noise"}, "inpaint_fill says how to use mask_image"),
        ({"mask_image": WHITE, "inpaint_fill": "latent"}, "inpaint_fill.*nothing"),
        ({"mask_image": WHITE, "mask_grow": 300}, "mask_grow must be at most 256, not 300"),
        ({"mask_image": WHITE, "mask_grow": -300}, "mask_grow must be .* at least -256, not -300"),
        (
            {"mask_image": WHITE, "inpaint_padding": 0, "mask_invert": True},
            "nothing is white in mask_image",
        ),
        (
            {"mask_image": WHITE, "inpaint_padding": 0, "output_type": "latent"},
            "inpaint_padding puts the masked part back",
        ),
        (
            {"mask_image": WHITE, "inpaint_padding": 0, "keep_unmasked": False},
            "keep_unmasked cannot be False",
        ),
        (
            {"mask_image": WHITE, "inpaint_padding": 0, "image": torch.zeros(1, 4, 8, 6)},
            "inpaint_padding needs the image itself",
        ),
        (
            {"mask_image": WHITE, "inpaint_fill": "blurred", "image": torch.zeros(1, 4, 8, 6)},
            "inpaint_fill='blurred' needs the image itself",
        ),
    ],
)
def test_what_cannot_be_done_is_said(sdxl: TinyModel, fields: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        with_encoder(sdxl)("a", **{"image": GREY, "steps": 1, **fields})


def test_a_soft_mask_changes_as_much_as_it_is_light(sdxl: TinyModel) -> None:
    """Three bands: black is the image's own pixels, grey changes less than white."""
    pipe = with_encoder(sdxl)
    bands = np.zeros((64, 48), np.uint8)
    bands[:, 16:32], bands[:, 32:] = 70, 255
    image = np.full((64, 48, 3), 0.6, np.float32)
    options: dict[str, Any] = {"image": image, "mask_image": bands, "seed": 2, "steps": 10}
    made = pipe("a", soft_mask=True, output_type="np", **options).images[0]
    changed = np.abs(made - image).mean((0, 2))
    assert changed[:16].max() == 0
    assert 0 < changed[16:32].mean() < 0.8 * changed[32:].mean()
    # Without it what is lighter than one half is made anew, and the rest kept.
    hard = pipe("a", output_type="latent", **options).images
    soft = pipe("a", soft_mask=True, output_type="latent", **options).images
    assert not torch.equal(hard[..., 2:4], soft[..., 2:4])
    black_and_white = {**options, "mask_image": bands // 255 * 255}
    both = [
        pipe("a", soft_mask=soft_mask, **black_and_white).images[0].tobytes()
        for soft_mask in (False, True)
    ]
    assert both[0] == both[1]


def test_a_part_with_a_soft_mask_is_not_blended(sdxl: TinyModel) -> None:
    grey = np.zeros((64, 48), np.uint8)
    grey[16:32, 16:32] = 128
    made = with_encoder(sdxl)(
        "a", image=GREY, mask_image=grey, soft_mask=True, inpaint_padding=0, steps=4, seed=1
    )
    changed = (np.asarray(made.images[0]) != np.asarray(GREY)).any(-1)
    assert changed[16:32, 16:32].mean() > 0.9
    assert not changed[grey == 0].any()
