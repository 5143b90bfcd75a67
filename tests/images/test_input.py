"""Images and masks of every form: what is seen is what the networks get."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageMode, PngImagePlugin

from kdrt.errors import InvalidRequestError
from kdrt.images.files import open_image
from kdrt.images.input import clip_pixels, read_images, read_masks, to_rgb

SIDE = 16
RAMP: NDArray[np.uint8] = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)
COLOURS = np.stack([RAMP, RAMP.T, np.full_like(RAMP, 90)], axis=-1)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[4:12, 4:12] = True

DEEP = {
    "I;16": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "I;16L": Image.frombytes("I;16L", (SIDE, SIDE), (RAMP.astype("<u2") * 257).tobytes()),
    "I;16B": Image.frombytes("I;16B", (SIDE, SIDE), (RAMP.astype(">u2") * 257).tobytes()),
    "I;16N": Image.frombytes("I;16N", (SIDE, SIDE), (RAMP.astype(np.uint16) * 257).tobytes()),
    "I of 8 bits": Image.fromarray(RAMP).convert("I"),
    "I of 16 bits": Image.fromarray(RAMP.astype(np.int32) * 257),
    "I of 31 bits": Image.fromarray((RAMP.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32)),
    "F to 1": Image.fromarray((RAMP / 255).astype(np.float32)),
    "F to 255": Image.fromarray(RAMP).convert("F"),
    "F to 65535": Image.fromarray((RAMP * 257.0).astype(np.float32)),
}
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa"),
    *("CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16L", "I;16B", "F"),
)


def seen(image: object, name: str = "image") -> NDArray[np.int_]:
    """RGB from 0 to 255, ``[H, W, 3]``."""
    planes = (read_images(name, image, 8)[0] + 1) * 127.5
    return planes.round().int().permute(1, 2, 0).numpy()


def mask_of(mask: object) -> NDArray[np.int_]:
    return read_masks("mask_image", mask, SIDE, SIDE)[0, 0].mul(255).round().int().numpy()


def rgba(colours: NDArray[np.uint8], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    return np.dstack([colours, alpha]).astype(np.uint8)


@pytest.mark.parametrize("form", DEEP)
def test_deep_grey_is_scaled_by_its_range(form: str) -> None:
    assert np.array_equal(seen(DEEP[form]), np.dstack([RAMP] * 3))
    assert np.array_equal(mask_of(DEEP[form]), RAMP)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_grey_in_files(kind: str) -> None:
    file = io.BytesIO()
    DEEP["I;16"].save(file, kind)
    assert np.array_equal(mask_of(Image.open(file)), RAMP)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBX", "1", "P", "LA", "La"])
def test_what_pillow_converts_is_as_pillow_has_it(mode: str) -> None:
    source = Image.fromarray(COLOURS)
    image = source.convert("LA").convert("La") if mode == "La" else source.convert(mode)
    expected = (image.convert("LA") if mode == "La" else image).convert("RGB")
    assert np.array_equal(seen(image), np.asarray(expected))
    assert np.array_equal(mask_of(image), np.asarray(expected.convert("L")))


@pytest.mark.parametrize(
    "values",
    [
        np.full((SIDE, SIDE), -1, np.int32),
        np.full((SIDE, SIDE), np.nan, np.float32),
        np.full((SIDE, SIDE), np.inf, np.float32),
        np.full((SIDE, SIDE), 1.1, np.float32),
        np.full((SIDE, SIDE), 1e9, np.float32),
    ],
    ids=["negative", "NaN", "infinite", "an overshoot of 1", "beyond 16 bits"],
)
def test_grey_of_no_known_range_is_refused(values: NDArray[Any]) -> None:
    with pytest.raises(
        InvalidRequestError, match="does not say what white is, and holds values from"
    ):
        seen(Image.fromarray(values))


# alpha


def palette(alphas: bytes | int) -> Image.Image:
    """Index 0 is hidden magenta, 1 opaque green."""
    image = Image.fromarray(HOLE.astype(np.uint8))
    image.putpalette([255, 0, 255, 0, 128, 0])
    image.info["transparency"] = alphas
    return image


def hidden_colour(mode: str, values: tuple[Any, Any], hidden: Any) -> Image.Image:
    image = Image.new(mode, (SIDE, SIDE), values[0])
    image.paste(values[1], (4, 4, 12, 12))
    image.info["transparency"] = hidden
    return image


MAGENTA, GREEN = (255, 0, 255), (0, 128, 0)
DRAWN = np.where(HOLE[..., None], GREEN, MAGENTA).astype(np.uint8)
HIDDEN = {
    "RGBA": Image.fromarray(rgba(DRAWN, HOLE * 255)),
    "RGBa": Image.fromarray(rgba(DRAWN, HOLE * 255)).convert("RGBa"),
    "PA": Image.fromarray(rgba(DRAWN, HOLE * 255)).convert("PA"),
    "P, bytes": palette(b"\0\xff"),
    "P, index": palette(0),
    "P, palette with alpha": Image.fromarray(HOLE.astype(np.uint8)),
    "RGB, tRNS": hidden_colour("RGB", (MAGENTA, GREEN), MAGENTA),
    "RGB, tRNS of 16 bits": hidden_colour("RGB", ((18, 0, 255), GREEN), (18 << 8 | 52, 0, 65535)),
}
HIDDEN["P, palette with alpha"].putpalette([255, 0, 255, 0, 0, 128, 0, 255], "RGBA")


@pytest.mark.parametrize("form", HIDDEN)
def test_hidden_colours_are_white(form: str) -> None:
    expected = np.where(HOLE[..., None], GREEN, 255)
    assert np.abs(seen(HIDDEN[form]) - expected).max() <= (1 if form == "PA" else 0)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.dstack([RAMP, HOLE * 255]).astype(np.uint8), "LA"),
        Image.fromarray(np.dstack([RAMP, HOLE * 255]).astype(np.uint8), "LA").convert("La"),
    ],
    ids=["LA", "La"],
)
def test_hidden_grey_is_white(image: Image.Image) -> None:
    assert np.array_equal(seen(image)[..., 1], np.where(HOLE, RAMP, 255))


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_a_hidden_value_of_grey_is_white(mode: str) -> None:
    values = (0, 65535) if mode == "I;16" else (0, 255)
    image = Image.fromarray(
        np.where(HOLE, *values).astype(np.uint16 if mode == "I;16" else np.uint8)
    )
    image = image if mode == "I;16" else image.convert(mode)
    assert (seen(image) == np.where(HOLE, 0, 255)[..., None]).all()
    image.info["transparency"] = 0
    assert (seen(image) == 255).all()


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (0, 100, 200, 51))
    assert np.abs(seen(image)[0, 0] - [204, 224, 244]).max() <= 1


@given(st.binary(min_size=SIDE * SIDE * 3, max_size=SIDE * SIDE * 3))
def test_opaque_alpha_changes_nothing(content: bytes) -> None:
    colours = np.frombuffer(content, np.uint8).reshape(SIDE, SIDE, 3)
    opaque = Image.fromarray(rgba(colours, np.full((SIDE, SIDE), 255)))
    assert np.array_equal(seen(opaque), colours)
    assert np.array_equal(seen(np.asarray(opaque)), colours)


# masks in alpha

WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)
SOFT = np.where(HOLE, RAMP, 0)


@pytest.mark.parametrize(
    "colours",
    [WHITE, np.where(SOFT[..., None] > 0, WHITE, 0), WHITE * 0, WHITE // 2],
    ids=["white", "white on black that is hidden", "black", "grey"],
)
def test_a_mask_of_one_colour_is_its_alpha(colours: NDArray[np.uint8]) -> None:
    array = rgba(colours, SOFT)
    for mask in (Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)):
        assert np.array_equal(mask_of(mask), SOFT)
    grey = np.ascontiguousarray(array[..., 2:])
    assert np.array_equal(mask_of(Image.fromarray(grey, "LA")), SOFT)


def test_a_mask_with_opaque_alpha_is_its_colours() -> None:
    grey = np.dstack([RAMP] * 3)
    assert np.array_equal(mask_of(Image.fromarray(rgba(grey, WHITE[..., 0]))), RAMP)
    assert np.array_equal(mask_of(rgba(grey, WHITE[..., 0])), RAMP)


@pytest.mark.parametrize(
    ("colours", "alpha"),
    [
        (COLOURS, SOFT),
        (COLOURS, np.full((SIDE, SIDE), 128)),
        (WHITE, np.full((SIDE, SIDE), 128)),
        (WHITE, np.zeros((SIDE, SIDE))),
    ],
    ids=["a photo with a hole", "an even veil", "a white veil", "nothing"],
)
def test_a_mask_that_may_be_colour_or_alpha_is_refused(
    colours: NDArray[np.uint8], alpha: NDArray[Any]
) -> None:
    for mask in (Image.fromarray(rgba(colours, alpha)), rgba(colours, alpha)):
        with pytest.raises(
            InvalidRequestError, match=r"mask_image has colours and alpha.*without alpha"
        ):
            mask_of(mask)


@pytest.mark.parametrize(
    "mask",
    [
        HOLE.astype(np.uint8),
        Image.fromarray(HOLE.astype(np.uint8)),
        Image.fromarray(HOLE.astype(np.int32)),
        HOLE.astype(np.uint16),
    ],
    ids=["array", "L", "I", "uint16"],
)
def test_a_mask_of_0_and_1_is_not_black(mask: object) -> None:
    with pytest.raises(
        InvalidRequestError, match="nothing would be repainted; if 1 stands for white"
    ):
        mask_of(mask)
    assert mask_of(np.zeros((SIDE, SIDE), np.uint8)).max() == 0


# arrays and tensors

DTYPES = [
    *(np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64, ">f4", np.longdouble),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_of_every_dtype(dtype: Any) -> None:
    kind = np.dtype(dtype)
    factor = {"uint8": 1.0, "uint16": 257.0}.get(kind.name, 1 / 255)
    array = (COLOURS * factor).astype(kind)
    before = array.copy()
    assert np.array_equal(seen(array), COLOURS)
    assert np.array_equal(array, before)
    assert np.array_equal(seen(array[:, ::-1]), COLOURS[:, ::-1])
    assert np.array_equal(mask_of(array[..., 0]), RAMP)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_tensors_of_every_dtype(dtype: str) -> None:
    factor = {"uint8": 1.0, "uint16": 257.0}.get(dtype, 1 / 255)
    tensor = torch.from_numpy((COLOURS * factor).astype(dtype)).permute(2, 0, 1)
    before = tensor.clone()
    assert np.array_equal(seen(tensor), COLOURS)
    assert torch.equal(tensor, before)


def test_booleans_are_black_and_white() -> None:
    for mask in (HOLE, torch.from_numpy(HOLE), Image.fromarray(HOLE)):
        assert np.array_equal(mask_of(mask), HOLE * 255)


def test_four_channels_are_composited() -> None:
    array = rgba(DRAWN, HOLE * 255)
    for form in (array, array / 255, torch.from_numpy(array).permute(2, 0, 1), [array]):
        assert np.array_equal(seen(form), np.where(HOLE[..., None], GREEN, 255))


@pytest.mark.parametrize(
    "array",
    [
        COLOURS.astype(np.int64),
        COLOURS.astype(np.int8),
        COLOURS.astype(np.uint32),
        COLOURS / 255 * 1j,
        COLOURS.astype(object),
        COLOURS.astype(str),
        COLOURS.astype(np.float32),
        COLOURS / 255 - 0.01,
        np.where(HOLE[..., None], np.nan, COLOURS / 255),
    ],
    ids=["int64", "int8", "uint32", "complex", "object", "str", "float to 255", "negative", "NaN"],
)
def test_other_numbers_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(InvalidRequestError, match="floats from 0 to 1, or uint8 from 0 to 255"):
        seen(array)
    with pytest.raises(InvalidRequestError, match="image"):
        seen(torch.zeros(3, SIDE, SIDE, dtype=torch.complex64))


anything = st.one_of(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    st.builds(
        lambda shape, dtype: np.zeros(shape, dtype),
        st.lists(st.integers(0, 20), max_size=5),
        st.sampled_from(["u1", "u2", "i4", "f4", "?", "c8", "O"]),
    ),
    st.builds(
        lambda shape, dtype: torch.full(shape, 1, dtype=dtype),
        st.lists(st.integers(0, 20), max_size=5),
        st.sampled_from([torch.uint8, torch.float16, torch.bool, torch.int64, torch.uint16]),
    ),
    st.builds(
        lambda mode, size, trns: _with_transparency(Image.new(mode, size), trns),
        st.sampled_from(MODES),
        st.tuples(st.integers(0, 20), st.integers(0, 20)),
        st.none() | st.integers(-1, 70000) | st.binary(max_size=3) | st.just((1, 2, 70000)),
    ),
)


def _with_transparency(image: Image.Image, value: object) -> Image.Image:
    if value is not None:
        image.info["transparency"] = value
    return image


@given(anything | st.lists(anything, max_size=3))
def test_whatever_is_given_is_read_or_refused(value: object) -> None:
    images = [value] if isinstance(value, Image.Image) else [Image.new("L", (8, 8))]
    for read in (
        lambda: read_images("image", value, 8),
        lambda: read_masks("mask_image", value, SIDE, SIDE),
        lambda: clip_pixels(images, 8),
    ):
        with contextlib.suppress(InvalidRequestError):
            assert read().isfinite().all()


def test_every_mode_that_pillow_makes_is_tested() -> None:
    for mode in MODES:
        assert ImageMode.getmode(mode)
        assert to_rgb("image", Image.new(mode, (8, 8))).mode == "RGB"


def test_exif_orientation_is_followed_in_every_mode() -> None:
    for mode in ("L", "RGB", "RGBA", "I;16"):
        image = DEEP["I;16"] if mode == "I;16" else Image.fromarray(RAMP).convert(mode)
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6  # its right side is up
        image.save(file, "PNG", exif=exif)
        assert np.array_equal(seen(Image.open(file))[..., 0], np.rot90(RAMP, -1))


def test_clip_sees_what_the_vae_sees() -> None:
    for image in (HIDDEN["RGBA"], HIDDEN["P, bytes"], DEEP["I;16"], DEEP["F to 1"]):
        expected = Image.fromarray(seen(image).astype(np.uint8))
        assert torch.equal(clip_pixels([image], 8), clip_pixels([expected], 8))


def test_a_line_is_too_narrow_for_clip() -> None:
    with pytest.raises(InvalidRequestError, match="20000x1 pixels is too narrow"):
        clip_pixels([Image.new("RGB", (20000, 1))], 224)


def test_an_image_that_is_too_large_is_resized_or_refused() -> None:
    image = Image.new("L", (17000, 16))
    with pytest.raises(InvalidRequestError, match="17000x16, and no side may be longer than 16383"):
        read_images("image", image, 8)
    assert read_images("image", image, 8, 16, 16).shape == (1, 3, 16, 16)


# files


def png(size: int, data: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


GOOD_JPEG = io.BytesIO()
Image.fromarray(COLOURS).resize((64, 64)).save(GOOD_JPEG, "JPEG")
DAMAGED = {
    "empty": b"",
    "no image": b"text",
    "more pixels than Pillow reads": png(20000),
    "no pixels": png(16),
    "pixels that are no zlib stream": png(16, b"damaged"),
    "compressed text of 2 MB": png(
        16, b"", (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 2**21))
    ),
    "a truncated JPEG": GOOD_JPEG.getvalue()[:-300],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(InvalidRequestError, match=r"cannot read "), open_image(path) as image:
        read_images("image", image, 8)


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(InvalidRequestError, match="it is not a file"):
            open_image(path)
    with pytest.raises(InvalidRequestError, match="No such file"):
        open_image(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_turns_nothing() -> None:
    image = Image.fromarray(COLOURS)
    image.info["exif"] = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    assert np.array_equal(seen(image), COLOURS)


def test_a_file_that_is_read_when_it_is_used(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "kept")
    Image.fromarray(COLOURS).save(tmp_path / "a.png", pnginfo=info)
    with open_image(tmp_path / "a.png") as image:
        assert np.array_equal(seen(image), COLOURS)
