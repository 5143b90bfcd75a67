"""What is one request, and what another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import kdrt
from kdrt.bundle import read_manifest
from kdrt.cli.request_digest import model_digest, request_digests
from kdrt.cli.requests_file import read_requests


def digests(folder: Path, *lines: dict[str, Any], common: Any = None) -> list[str]:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return list(request_digests("model", read_requests(path, common or kdrt.Request())))


def test_equal_requests_have_equal_digests_wherever_they_stand(tmp_path: Path) -> None:
    a, b = {"prompt": "a", "steps": 5}, {"prompt": "b"}
    first = digests(tmp_path, a, b)
    assert first == digests(tmp_path, a, b)
    assert first == digests(tmp_path, b, a)[::-1]
    assert len(set(first)) == 2
    # Said in another way.
    assert first[:1] == digests(tmp_path, {"steps": 5, "prompt": "a"})
    assert first[:1] == digests(tmp_path, {"prompt": "a"}, common={"steps": 5})
    assert first[1:] == digests(tmp_path, {**b, "steps": 20, "seed": None})


def test_any_change_makes_another_request(tmp_path: Path) -> None:
    a = {"prompt": "a"}
    changes: list[dict[str, Any]] = [
        {"prompt": "b"},
        {"steps": 5},
        {"seed": 0},
        {"output": "a.png"},
    ]
    changes += [{"sampler_options": {"eta": 0}}, {"images_per_prompt": 2}, {"negative_prompt": ""}]
    found = {digests(tmp_path, {**a, **change})[0] for change in ({}, *changes)}
    assert len(found) == len(changes) + 1


def test_equal_lines_ask_for_an_image_each(tmp_path: Path) -> None:
    a, b = {"prompt": "a"}, {"prompt": "b"}
    first, second, third = digests(tmp_path, a, a, a)
    assert len({first, second, third}) == 3
    assert digests(tmp_path, b, a, a)[1:] == [first, second]


def test_the_content_of_files_counts(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.png")
    red.save(tmp_path / "same.png")
    line = {"prompt": "a", "image": "a.png"}
    before = digests(tmp_path, line)
    assert before == digests(tmp_path, {**line, "image": "same.png"})
    blue.save(tmp_path / "a.png")
    assert before != digests(tmp_path, line)


def test_values_that_options_have_read_count_by_their_content(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    line = {"prompt": "a"}
    first = digests(tmp_path, line, common={"image": red})
    assert first == digests(tmp_path, line, common={"image": red.copy()})
    assert first != digests(tmp_path, line, common={"image": blue})
    zeros, ones = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    first = digests(tmp_path, line, common={"latents": zeros})
    assert first == digests(tmp_path, line, common={"latents": zeros.clone()})
    assert first != digests(tmp_path, line, common={"latents": ones})


def test_the_model_counts(tmp_path: Path, demo_bundle: Path) -> None:
    manifest = read_manifest(demo_bundle)
    other = manifest.model_copy(update={"files": {**manifest.files, "more.bin": "0" * 64}})
    assert model_digest(manifest, []) == model_digest(read_manifest(demo_bundle), [])
    assert model_digest(manifest, []) != model_digest(other, [])
    (tmp_path / "requests.jsonl").write_text('{"prompt": "a"}')
    lines = read_requests(tmp_path / "requests.jsonl", kdrt.Request())
    assert list(request_digests("x", lines)) != list(request_digests("y", lines))
