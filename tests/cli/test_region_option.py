"""Regions on the command line and in files of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdrt.cli.region_option import mask_files, region_option, with_masks
from kdrt.cli.request_digest import request_digests
from kdrt.cli.request_json import json_request, with_files
from kdrt.cli.requests_file import RequestLine
from kdrt.errors import InvalidRequestError
from kdrt.images.region import Region


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("left.png=a red circle", Region("a red circle", Path("left.png"))),
        ("left.png:0.5=a = b", Region("a = b", Path("left.png"), 0.5)),
        ("a:b.png=a star", Region("a star", Path("a:b.png"))),
    ],
)
def test_a_mask_a_weight_and_a_prompt(text: str, region: Region) -> None:
    assert region_option(text) == region


@pytest.mark.parametrize("text", ["left.png", "=a star", "left.png=", "left.png= "])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"--region takes a mask.*'left\.png=a red"):
        region_option(text)


def test_masks_are_found_beside_the_requests_and_read_later(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "left.png")
    fields = {"prompt": "a", "regions": [{"prompt": "b", "mask": "left.png", "weight": 2}]}
    request: Any = json_request(fields, tmp_path)
    assert request["regions"] == [Region("b", tmp_path / "left.png", 2)]
    assert mask_files(request["regions"]) == [tmp_path / "left.png"]
    read: Any = with_files(request)
    assert read["regions"][0].mask.getpixel((0, 0)) == 200
    assert with_masks(read["regions"], Image.open) == read["regions"]
    (before,) = request_digests("model", [RequestLine(1, request, None)])
    Image.new("L", (8, 8), 255).save(tmp_path / "left.png")
    (after,) = request_digests("model", [RequestLine(1, request, None)])
    assert before != after


@pytest.mark.parametrize(
    "regions",
    [{"prompt": "b", "mask": "left.png"}, ["left.png"], [{"prompt": "b"}], [{"mask": 1}], [[]]],
)
def test_regions_of_another_form_are_refused(tmp_path: Path, regions: object) -> None:
    with pytest.raises(InvalidRequestError, match="regions must be a list of objects such as"):
        json_request({"prompt": "a", "regions": regions}, tmp_path)


def test_a_mask_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"left\.png"):
        json_request({"prompt": "a", "regions": [{"prompt": "b", "mask": "left.png"}]}, tmp_path)
