"""The image and the mask to begin with."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image

from kdrt.serve.a1111.bodies import ImageBody
from kdrt.serve.a1111.starts import read_start
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.limits import RequestLimits
from tests.support.serving import png

LIMITS = RequestLimits(pixels=128 * 128, input_pixels=256 * 256)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def start_of(image: Image.Image, mask: Image.Image | None = None, **fields: Any) -> dict[str, Any]:
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
    assert start.pop("image").tobytes() == halves().tobytes()
    assert start == {"width": 64, "height": 64}


@pytest.mark.parametrize(
    ("size", "fitted"), [((64, 40), (64, 40)), ((70, 45), (64, 40)), ((256, 128), (176, 88))]
)
def test_without_a_size_it_is_as_large_as_allowed(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert start_of(halves(*size))["image"].size == fitted


def test_an_image_is_stretched_or_cropped() -> None:
    stretched, cropped = (
        start_of(halves(128, 64), width=32, height=64, resize_mode=mode)["image"] for mode in (0, 1)
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


def test_a_mask_goes_to_the_request() -> None:
    mask = square(8, 8, 24, 24)
    start = start_of(halves(), mask, inpaint_full_res=False, inpainting_fill=1)
    assert start.pop("mask_image").tobytes() == mask.tobytes()
    assert start.pop("image").tobytes() == halves().tobytes()
    assert start == {
        "width": 64,
        "height": 64,
        "inpaint_fill": "original",
        "mask_invert": False,
        "mask_blur": 0.0,
    }


def test_what_nobody_says_is_as_in_the_web_ui() -> None:
    """The masked part alone, on the colours around it, with a soft edge."""
    start = start_of(halves(128, 128), square(80, 40, 96, 56), mask_blur=None, width=64, height=64)
    assert start["image"].size == start["mask_image"].size == (128, 128)
    assert (start["inpaint_padding"], start["inpaint_fill"]) == (0, "blurred")
    assert start["mask_blur"] == 4


@pytest.mark.parametrize(
    ("number", "name"), [(0, "blurred"), (1, "original"), (2, "noise"), (3, "nothing")]
)
def test_what_lies_under_the_mask(number: int, name: str) -> None:
    start = start_of(halves(), square(0, 0, 9, 9), inpainting_fill=number)
    assert start["inpaint_fill"] == name


def test_a_mask_may_be_inverted_blurred_and_in_alpha() -> None:
    mask = square(0, 0, 32, 64)
    inverted = start_of(halves(), mask, inpainting_mask_invert=1)
    assert inverted["mask_invert"] is True
    assert inverted["mask_image"].tobytes() == mask.tobytes()
    blurred = start_of(halves(), mask, mask_blur=4, inpaint_full_res_padding=8)
    assert (blurred["mask_blur"], blurred["inpaint_padding"]) == (4, 8)
    alpha = Image.new("RGBA", (64, 64), "black")
    alpha.putalpha(mask)
    assert start_of(halves(), alpha)["mask_image"].tobytes() == mask.tobytes()


def test_a_blur_grows_with_the_mask_that_it_softens() -> None:
    """The web UI blurs before it resizes, except where only the masked part is made."""
    options: dict[str, Any] = {"width": 128, "height": 128, "mask_blur": 3}
    whole = start_of(halves(), square(0, 0, 9, 9), inpaint_full_res=False, **options)
    part = start_of(halves(), square(0, 0, 9, 9), **options)
    assert (whole["mask_blur"], part["mask_blur"]) == (6, 3)


def test_other_blurs_across_and_down_are_made_at_once() -> None:
    mask = square(0, 0, 32, 64)
    across = start_of(halves(), mask, mask_blur_x=0, mask_blur_y=9, inpainting_mask_invert=1)
    assert across["mask_image"].tobytes() == square(32, 0, 64, 64).tobytes()
    assert "mask_blur" not in across
    assert "mask_invert" not in across


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"init_images": []}, RequestError, "init_images must hold one image, and these are 0"),
        ({"init_images": ["", ""]}, RequestError, "these are 2"),
        ({"init_images": ["/etc/passwd"]}, RequestError, "init_images must be base64"),
        ({"init_images": ["https://example.org/a.png"]}, RequestError, "are not fetched"),
        ({"init_images": ["AAAA"]}, RequestError, "init_images"),
        ({"mask": encoded(square(0, 0, 1, 1))[:40]}, RequestError, "mask"),
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
