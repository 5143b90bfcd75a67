"""The image and the mask to begin with."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image

from kdrt.serve.a1111.bodies import ImageBody
from kdrt.serve.a1111.starts import Box, Size, Start, read_start
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.limits import RequestLimits
from tests.support.serving import png

LIMITS = RequestLimits(pixels=128 * 128, input_pixels=256 * 256)
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def encoded(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def start_of(image: Image.Image, mask: Image.Image | None = None, **fields: Any) -> Start:
    given: dict[str, Any] = {"init_images": [encoded(image)], "mask_blur": 0, **fields}
    if mask is not None:
        given["mask"] = encoded(mask)
    return read_start(ImageBody(**given), 8, LIMITS)


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def square(*box: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White in a box, black around it."""
    mask = Image.new("L", size)
    left, top, right, bottom = box
    mask.paste(255, (left, top, right, bottom))
    return mask


def test_an_image_as_it_is() -> None:
    start = start_of(halves(), width=64, height=64)
    assert start.fields["image"].tobytes() == halves().tobytes()
    assert (start.fields["width"], start.fields["height"]) == (64, 64)
    assert start.finish is None
    assert "mask_image" not in start.fields


@pytest.mark.parametrize(
    ("size", "fitted"), [((64, 40), (64, 40)), ((70, 45), (64, 40)), ((256, 128), (176, 88))]
)
def test_without_a_size_it_is_as_large_as_allowed(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert start_of(halves(*size)).fields["image"].size == fitted


def test_an_image_is_stretched_or_cropped() -> None:
    stretched, cropped = (
        start_of(halves(128, 64), width=32, height=64, resize_mode=mode).fields["image"]
        for mode in (0, 1)
    )
    assert stretched.size == cropped.size == (32, 64)
    # Of a crop the middle is left: 16 columns of each colour, as when it is stretched, but the
    # border is as sharp as before.
    assert cropped.getpixel((15, 5)) == RED
    assert cropped.getpixel((16, 5)) == BLUE
    assert stretched.getpixel((15, 5)) != RED
    with pytest.raises(UnsupportedError, match="resize_mode 2 is not supported"):
        start_of(halves(128, 64), width=64, height=64, resize_mode=2)
    start_of(halves(), width=64, height=64, resize_mode=2)


def test_a_mask_on_the_image_itself_goes_to_the_request() -> None:
    mask = square(8, 8, 24, 24)
    start = start_of(halves(), mask, inpaint_full_res=False, inpainting_fill=1)
    assert start.fields["mask_image"].tobytes() == mask.tobytes()
    assert start.fields["image"].tobytes() == halves().tobytes()
    assert start.finish is None


def test_a_mask_is_filled_with_the_colours_around_it() -> None:
    image = Image.new("RGB", (64, 64), RED)
    image.paste(BLUE, (24, 24, 40, 40))
    start = start_of(image, square(20, 20, 44, 44), inpaint_full_res=False)
    assert start.fields["keep_unmasked"] is False
    red, _, blue = start.fields["image"].getpixel((32, 32))
    assert red > 250
    assert blue < 5
    assert start.finish is not None
    made = start.finish(Image.new("RGB", (64, 64), GREEN))
    assert made.getpixel((32, 32)) == GREEN
    assert made.getpixel((19, 32)) == RED


@pytest.mark.parametrize("fill", [0, 1])
def test_the_masked_part_alone_is_made_at_the_whole_size(fill: int) -> None:
    image = halves(128, 128)
    mask = square(80, 40, 96, 56, size=(128, 128))
    start = start_of(image, mask, inpainting_fill=fill, width=64, height=64)
    assert start.fields["image"].size == start.fields["mask_image"].size == (64, 64)
    assert start.fields["mask_image"].getextrema() == (255, 255)
    assert start.finish is not None
    made = start.finish(Image.new("RGB", (64, 64), GREEN))
    wanted = image.copy()
    wanted.paste(GREEN, (80, 40, 96, 56))
    assert made.tobytes() == wanted.tobytes()


def test_of_the_part_only_what_is_masked_is_made_anew() -> None:
    image = halves(128, 128)
    mask, wanted = square(80, 40, 84, 44, size=(128, 128)), image.copy()
    mask.paste(255, (92, 52, 96, 56))
    wanted.paste(GREEN, (0, 0), mask)
    start = start_of(image, mask, inpainting_fill=1, width=64, height=64)
    assert start.finish is not None
    assert start.finish(Image.new("RGB", (64, 64), GREEN)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("box", "padding", "size", "part"),
    [
        ((80, 40, 96, 56), 8, (64, 64), (72, 32, 104, 64)),
        ((0, 0, 16, 16), 8, (64, 64), (0, 0, 24, 24)),
        ((80, 40, 96, 48), 0, (64, 64), (80, 36, 96, 52)),  # as high as it is wide
        ((112, 40, 128, 72), 0, (64, 64), (96, 40, 128, 72)),  # no room on the right
        ((60, 0, 68, 128), 0, (64, 32), (0, 0, 128, 128)),  # no room on either side
    ],
)
def test_the_part_has_the_proportions_of_the_result_where_there_is_room(
    box: Box, padding: int, size: Size, part: Box
) -> None:
    image = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    mask = square(*box, size=(128, 128))
    start = start_of(
        image,
        mask,
        inpainting_fill=1,
        inpaint_full_res_padding=padding,
        width=size[0],
        height=size[1],
    )
    wanted = image.crop(part).resize(size, Image.Resampling.LANCZOS)
    assert start.fields["image"].tobytes() == wanted.tobytes()


def test_a_mask_may_be_inverted_blurred_and_in_alpha() -> None:
    usual = {"inpaint_full_res": False, "inpainting_fill": 1}
    mask = square(0, 0, 32, 64)
    inverted = start_of(halves(), mask, inpainting_mask_invert=1, **usual).fields["mask_image"]
    assert inverted.tobytes() == square(32, 0, 64, 64).tobytes()
    blurred = start_of(halves(), mask, mask_blur=4, **usual).fields["mask_image"]
    assert blurred.getpixel((8, 32)) == 255
    assert 64 < blurred.getpixel((32, 32)) < 192
    assert blurred.getpixel((60, 32)) == 0
    across = start_of(halves(), mask, mask_blur_x=0, mask_blur_y=9, **usual).fields["mask_image"]
    assert across.tobytes() == mask.tobytes()
    alpha = Image.new("RGBA", (64, 64), "black")
    alpha.putalpha(mask)
    assert start_of(halves(), alpha, **usual).fields["mask_image"].tobytes() == mask.tobytes()


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"init_images": []}, RequestError, "init_images must hold one image, and these are 0"),
        ({"init_images": ["", ""]}, RequestError, "these are 2"),
        ({"init_images": ["/etc/passwd"]}, RequestError, "init_images must be base64"),
        ({"init_images": ["https://example.org/a.png"]}, RequestError, "are not fetched"),
        ({"init_images": ["AAAA"]}, RequestError, "init_images"),
        ({"mask": encoded(square(0, 0, 1, 1))[:40]}, RequestError, "mask"),
        ({"mask": encoded(square(0, 0, 0, 0))}, RequestError, "nothing is white in the mask"),
        ({"mask": encoded(square(0, 0, 9, 9)), "inpainting_fill": 2}, UnsupportedError, "fill 2"),
        ({"init_images": [encoded(halves(300, 300))]}, LimitError, "300x300"),
        ({"width": 1024}, LimitError, "1024x64 has more than the 16384 pixels"),
        (
            {"init_images": [encoded(halves(200, 200))], "mask": encoded(square(0, 0, 9, 9))},
            LimitError,
            "200x200 has more than the 16384 pixels",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    fields: dict[str, Any], error: type[RequestError], said: str
) -> None:
    body = ImageBody(**{"init_images": [encoded(halves())], **fields})
    with pytest.raises(error, match=said):
        read_start(body, 8, LIMITS)
