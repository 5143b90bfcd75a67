"""Images for IP-Adapters on the command line and in files of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdrt.cli.ip_adapter_image import image_options
from kdrt.cli.request_json import json_request, with_files
from kdrt.errors import InvalidRequestError

FLAG = "--ip-adapter-image"
A, B = Path("a.png"), Path("b.png")


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["a.png"], A),
        (["a.png", "b.png"], [[A, B]]),
        (["a.png:name=face"], {"face": A}),
        (["a.png:name=face", "b.png:name=style"], {"face": A, "style": B}),
        (["a.png:name=face", "b.png:name=face"], {"face": [[A, B]]}),
    ],
)
def test_files_and_names(texts: list[str], value: Any) -> None:
    assert image_options(FLAG, texts, at_once=True) == value


def test_masks_are_those_of_an_adapter() -> None:
    assert image_options("--ip-adapter-mask", ["a.png", "b.png"], at_once=False) == [A, B]


def test_a_name_everywhere_or_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match="needs the name of an IP-Adapter everywhere"):
        image_options(FLAG, ["a.png", "b.png:name=face"], at_once=True)
    monkeypatch.chdir(tmp_path)
    Path("a:name=b").touch()  # a file of such a name is one
    assert image_options(FLAG, ["a:name=b"], at_once=True) == Path("a:name=b")


def test_in_files_of_requests(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    Image.new("L", (2, 2), 255).save(tmp_path / "mask.png")
    fields = {
        "ip_adapter_image": {"face": [["red.png", "red.png"]], "style": "red.png"},
        "ip_adapter_masks": {"face": ["mask.png", "mask.png"]},
        "ip_adapter_scale": {"face": 0.5, "style": {"up.block_0": [0, 1]}},
    }
    request = json_request({"prompt": "a", **fields}, tmp_path)
    given: Any = with_files(request)
    assert given["ip_adapter_image"]["face"][0][1].getpixel((0, 0)) == (255, 0, 0)
    assert given["ip_adapter_image"]["style"].size == (2, 2)
    assert [mask.mode for mask in given["ip_adapter_masks"]["face"]] == ["L", "L"]
    assert given["ip_adapter_scale"] == fields["ip_adapter_scale"]


@pytest.mark.parametrize("value", [7, [], {}, {"face": 1}, ["none.png"]])
def test_what_is_none_of_these(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"must be the name of a file|cannot read"):
        json_request({"prompt": "a", "ip_adapter_image": value}, tmp_path)
