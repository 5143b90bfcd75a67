"""``--control`` and the control images of a JSON object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdrt.cli.control_option import control_option, json_controls, paths_of, with_images
from kdrt.cli.image_input import read_image
from kdrt.cli.request_digest import request_digests
from kdrt.cli.request_json import json_request
from kdrt.cli.requests_file import RequestLine
from kdrt.errors import InvalidRequestError, UnknownFieldError
from kdrt.images.control import ControlImage

OPTIONS: dict[str, dict[str, Any]] = {
    "a.png": {},
    "a.png:0.8": {"scale": 0.8},
    "a.png:scale=0.5,name=canny": {"scale": 0.5, "name": "canny"},
    "a.png:0.5,start=0.1,end=0.6,process=canny": {
        **{"scale": 0.5, "start": 0.1, "end": 0.6},
        "process": "canny",
    },
    "c:/folder/a.png": {},
}


@pytest.mark.parametrize("text", OPTIONS)
def test_an_option(text: str) -> None:
    expected = vars(ControlImage(None)) | OPTIONS[text]
    control = control_option(text)
    path = "c:/folder/a.png" if text.startswith("c:") else "a.png"
    assert vars(control) == expected | {"image": Path(path)}


@pytest.mark.parametrize("options", ["nonsense=3", "scale=x", "0.5,scale=0.6", "name="])
def test_what_is_no_option(tmp_path: Path, options: str) -> None:
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(InvalidRequestError, match="FILE:name=canny"):
        control_option(f"{file}:{options}")


def test_json(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), 7).save(tmp_path / name)
    asked = {"control": [{"image": "a.png", "scale": 0.5}, {"image": ["a.png", "b.png"]}]}
    first, second = json_request(asked, tmp_path)["control"]  # type: ignore[misc]
    assert (first.image, first.scale) == (tmp_path / "a.png", 0.5)
    assert paths_of(second) == [tmp_path / "a.png", tmp_path / "b.png"]
    read, several = with_images([first, second], read_image)
    assert isinstance(read.image, Image.Image)
    assert isinstance(several.image, list)
    assert not paths_of(several)


@pytest.mark.parametrize("text", ["", "  "])
def test_nothing_is_no_file(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"names no file; write FILE:0\.8"):
        control_option(text)


def test_json_that_is_none(tmp_path: Path) -> None:
    wrongs: list[Any] = ["a.png", {"scale": 1}, {"image": 3}, {"image": []}, [3]]
    for wrong in wrongs:
        with pytest.raises(InvalidRequestError, match="control"):
            json_controls(wrong, tmp_path)
    with pytest.raises(UnknownFieldError, match="no field 'scal'; did you mean 'scale'"):
        json_controls({"image": "a.png", "scal": 1}, tmp_path)
    with pytest.raises(InvalidRequestError, match=r"no\.png"):
        json_request({"control": {"image": "no.png"}}, tmp_path)


def test_the_digest_is_of_what_the_files_hold(tmp_path: Path) -> None:
    def digest(grey: int, scale: float) -> str:
        Image.new("RGB", (8, 8), grey).save(tmp_path / "a.png")
        request: Any = {"prompt": "a", "control": [ControlImage(tmp_path / "a.png", scale=scale)]}
        return next(request_digests("", [RequestLine(1, request, None)]))

    assert digest(7, 1.0) == digest(7, 1.0)
    assert len({digest(7, 1.0), digest(8, 1.0), digest(7, 0.5)}) == 3
