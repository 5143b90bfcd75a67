"""From pictures to what ControlNets were trained on."""

from __future__ import annotations

import sys

import pytest
import torch

from kdrt.errors import InvalidRequestError
from kdrt.images.processors import PROCESSORS, canny, depth, find_processor, invert, scribble


def picture() -> torch.Tensor:
    """A white square on black."""
    pixels = torch.zeros(3, 32, 40)
    pixels[:, 8:24, 10:30] = 1
    return pixels


def test_canny_gives_the_outline() -> None:
    edges = canny(picture())
    assert edges.shape == (3, 32, 40)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(edges[0], edges[2])
    assert not edges[:, 12:20, 14:26].any()
    assert not edges[:, :6].any()
    assert edges[0, 7:9, 15:25].any(0).all()
    assert not canny(picture() * 0.1).any(), "below the thresholds"


def test_canny_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'kdrt\[control\]'"):
        canny(picture())


def test_lines_and_maps() -> None:
    pixels = torch.full((3, 2, 2), 0.8)
    pixels[:, 0] = 0.2
    assert torch.equal(scribble(pixels)[:, 0], torch.ones(3, 2))
    assert not scribble(pixels)[:, 1].any()
    torch.testing.assert_close(invert(pixels), 1 - pixels)
    assert depth(pixels).unique().tolist() == [0.0, 1.0]
    assert not depth(torch.full((3, 2, 2), 0.4)).any()


def test_names() -> None:
    assert find_processor("canny") is canny
    with pytest.raises(InvalidRequestError, match=r"unknown process 'cany'; known: canny, .* did"):
        find_processor("cany")
    for processor in PROCESSORS.values():
        made = processor(picture())
        assert made.shape == (3, 32, 40)
        assert 0 <= made.min() <= made.max() <= 1
