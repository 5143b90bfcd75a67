"""Several images and their labels on one sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kdrt
from kdrt.errors import InvalidRequestError
from kdrt.images.sheet import MAX_SHEET_SIDE, sheet_layout

COLOURS = ("red", "lime", "blue", "yellow", "cyan")


def images(size: tuple[int, int] = (150, 100)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def test_images_stand_row_by_row() -> None:
    sheet = kdrt.image_grid(images(), columns=2)
    layout = sheet_layout(5, (150, 100), columns=2, labelled=False)
    assert sheet.size == layout.sheet
    for index, image in enumerate(images()):
        left, top = layout.corner(index)
        assert sheet.crop((left, top, left + 150, top + 100)).tobytes() == image.tobytes()
    assert layout.corner(3) == (layout.corner(1)[0], layout.corner(2)[1])


def test_labels_stand_below_their_images_and_nowhere_else() -> None:
    sheet = np.asarray(kdrt.image_grid(images(), ["seed 1", "", "", "", "a long label " * 30]))
    layout = sheet_layout(5, (150, 100))

    def inked(index: int) -> np.ndarray:
        left, top = layout.corner(index)
        width, height = layout.cell
        below = sheet[top + 100 : top + height, left : left + width]
        return np.asarray(below.max(axis=2) < 128)

    assert inked(0).any()
    assert not inked(1).any()
    long = inked(4)
    assert long.any()
    assert not long[:, 150:].any(), "a label reaches into the next cell"
    assert not long[-4:].any(), "a label reaches into the next row"


@pytest.mark.parametrize("label", ["café", "красный", "赤い丸", "é" * 500])
def test_labels_of_any_script_are_drawn(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for fonts in (("DejaVuSans.ttf",), ()):
        monkeypatch.setattr("kdrt.images.sheet._SYSTEM_FONTS", fonts)
        assert np.asarray(kdrt.image_grid(images()[:1], [label])).min() == 0


def test_large_images_are_scaled_to_a_bounded_sheet() -> None:
    sheet = kdrt.image_grid([Image.new("RGB", (4000, 3000), "red")] * 9, ["label"] * 9)
    assert MAX_SHEET_SIDE * 0.9 < max(sheet.size) <= MAX_SHEET_SIDE


def test_images_of_any_mode_and_size() -> None:
    mixed = [
        Image.new("L", (30, 90)),
        Image.new("RGBA", (90, 30), (255, 0, 0, 128)),
        Image.new("P", (5, 5)),
    ]
    sheet = kdrt.image_grid(mixed)
    assert sheet.mode == "RGB"
    assert sheet.size == sheet_layout(3, (90, 90), labelled=False).sheet


def test_arrays_tensors_and_one_image_are_taken() -> None:
    expected = np.asarray(kdrt.image_grid(images()))
    array = np.stack([np.asarray(image, np.float32) / 255 for image in images()])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    forms: list[Any] = [array, tensor, list(array), list(tensor)]
    for given in forms:
        assert np.array_equal(np.asarray(kdrt.image_grid(given)), expected)
    alone = np.asarray(kdrt.image_grid(images()[:1]))
    for one in (images()[0], array[0], tensor[0]):
        assert np.array_equal(np.asarray(kdrt.image_grid(one)), alone)
    with pytest.raises(InvalidRequestError, match="must be of shape"):
        kdrt.image_grid(torch.zeros(1, 5, 8, 8))


def test_what_cannot_be_on_a_sheet() -> None:
    faults: list[Any] = [
        [],
        ["a.png"],
        None,
        "a.png",
        {},
        np.zeros((0, 8, 8, 3)),
        torch.zeros(0, 3, 8, 8),
    ]
    for wrong in faults:
        with pytest.raises(InvalidRequestError, match="at least one PIL image"):
            kdrt.image_grid(wrong)
    with pytest.raises(InvalidRequestError, match="1 labels for 5 images"):
        kdrt.image_grid(images(), ["one"])
    with pytest.raises(InvalidRequestError, match="columns must be"):
        kdrt.image_grid(images(), columns=0)
    with pytest.raises(InvalidRequestError, match="make several sheets"):
        sheet_layout(5000, (64, 64))
