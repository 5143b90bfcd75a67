"""Images of strangers, under limits."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from kdrt.serve.errors import LimitError, RequestError
from kdrt.serve.images import base64_of, decoded_base64, mask_of, read_image
from tests.support.serving import image_of, png

RED = Image.new("RGB", (6, 4), "red")


def test_base64_and_data_urls() -> None:
    plain = base64.b64encode(b"some bytes").decode()
    assert decoded_base64("image", plain) == b"some bytes"
    assert decoded_base64("image", f"data:image/png;base64,{plain}") == b"some bytes"
    assert decoded_base64("image", f"data:;base64,{plain}") == b"some bytes"
    url = f"data:image/png;charset=utf-8;name=a.png;base64,{plain}"
    assert decoded_base64("image", url) == b"some bytes"


def test_base64_in_lines() -> None:
    lines = base64.encodebytes(bytes(range(200))).decode().replace("\n", "\r\n")
    assert decoded_base64("image", lines) == bytes(range(200))


@pytest.mark.parametrize(
    "text", ["http://a/b.png", "HTTPS://a", "file:///etc/passwd", "ftp://a", "gopher:x"]
)
def test_addresses_are_not_fetched(text: str) -> None:
    with pytest.raises(RequestError, match="addresses are not fetched"):
        decoded_base64("image", text)


@pytest.mark.parametrize("text", ["a", "====", "ab-c", "é", "data:image/png;base64,?"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="image must be base64") as error:
        decoded_base64("image", text)
    assert error.value.field == "image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_read(kind: str) -> None:
    data = io.BytesIO()
    RED.save(data, kind)
    image = read_image("image", data.getvalue(), 24)
    red, green, blue = image.convert("RGB").tobytes()[:3]
    assert red > 200
    assert green < 50 > blue


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "EPS", "PDF"])
def test_formats_that_are_not(kind: str) -> None:
    data = io.BytesIO()
    RED.save(data, kind)
    with pytest.raises(RequestError, match="it is no image"):
        read_image("image", data.getvalue(), 10**6)


def test_an_image_is_turned_upright() -> None:
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    RED.save(data, "JPEG", exif=exif)
    assert read_image("image", data.getvalue(), 24).size == (4, 6)


def test_an_image_that_is_too_large_is_not_decoded() -> None:
    data = png(Image.new("1", (3000, 3000)))
    with pytest.raises(LimitError, match="3000x3000 pixels"):
        read_image("mask", data[:100], 10**6)  # the rest is not there


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", png(Image.effect_noise((64, 64), 9))[:2000], b"\x89PNG\r\n\x1a\n" * 10]
)
def test_a_damaged_image_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match="it is no image") as error:
        read_image("mask", data, 10**6)
    assert error.value.field == "mask"


def test_a_mask_is_what_is_transparent_or_white() -> None:
    drawn = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    drawn.putpixel((1, 0), (10, 20, 30, 0))
    assert [*mask_of(drawn).tobytes()] == [0, 255]
    grey = Image.new("L", (2, 1))
    grey.putpixel((1, 0), 255)
    assert mask_of(grey).tobytes() == grey.tobytes()


def test_an_image_as_base64() -> None:
    back = image_of(base64_of(RED, "png", "how it was made"))
    assert back.tobytes() == RED.tobytes()
    assert back.info["parameters"] == "how it was made"
    assert image_of(base64_of(RED, "webp", quality=1)).format == "WEBP"
