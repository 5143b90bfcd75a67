"""Files of requests: what their lines mean, and how wrong ones are told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kdrt
from kdrt.cli.image_files import MAX_FILES
from kdrt.cli.requests_file import BadLinesError, read_requests
from kdrt.errors import InvalidRequestError

NOTHING = kdrt.Request()


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "requests.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def wrong(folder: Path, *lines: dict[str, Any] | str) -> BadLinesError:
    with pytest.raises(BadLinesError) as caught:
        read_requests(written(folder, *lines), NOTHING)
    return caught.value


def test_a_line_is_a_request_and_empty_ones_count_as_lines(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "a café", "steps": 3}, "", "  ", {"prompt": ["b", "c"]}, "")
    first, second = read_requests(file, NOTHING)
    assert (first.number, first.request, first.prompts) == (
        1,
        {"prompt": "a café", "steps": 3},
        ("a café",),
    )
    assert (second.number, second.prompts) == (4, ("b", "c"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_any_end_of_lines_and_a_mark_of_utf_8(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(("\ufeff" + newline.join(['{"prompt": "ä"}'] * 2)).encode())
    assert [line.prompts for line in read_requests(path, NOTHING)] == [("ä",), ("ä",)]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}')))
    assert [line.prompts for line in read_requests(Path("-"), NOTHING)] == [("a",)]


def test_a_line_counts_before_what_all_have_in_common(tmp_path: Path) -> None:
    common = kdrt.Request(
        steps=9, sampler="euler_ancestral", sampler_options={"eta": 0.5}, images_per_prompt=2
    )
    file = written(tmp_path, {"prompt": "a"}, {"prompt": "b", "sampler": "euler", "steps": 4})
    first, second = read_requests(file, common)
    assert first.request == {**common, "prompt": "a"}
    # The options are those of a sampler that this line does not use.
    assert second.request == {
        "prompt": "b",
        "sampler": "euler",
        "steps": 4,
        "images_per_prompt": 2,
    }
    assert second.prompts == ("b", "b")


def test_no_recipe_leaves_the_options_of_the_command(tmp_path: Path) -> None:
    common = kdrt.Request(steps=6, sampler="heun", guidance_scale=3)
    (line,) = read_requests(written(tmp_path, {"prompt": "a", "recipe": None}), common)
    assert line.request == {**common, "prompt": "a", "recipe": None}


def test_common_fields_of_an_image_hold_for_the_lines_that_have_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file = written(tmp_path, {"prompt": "a", "image": "a.png"}, {"prompt": "b"})
    first, second = read_requests(file, kdrt.Request(strength=0.5))
    assert first.request.get("strength") == 0.5
    assert second.request == {"prompt": "b"}
    assert "strength says" in str(wrong(tmp_path, {"prompt": "a", "strength": 0.5}))


def test_names_of_images(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"prompt": "a"},
        {"prompt": "a", "images_per_prompt": 2},
        {"prompt": "a", "output": "cats/one.webp"},
        {"prompt": ["a", "b"], "output": "two.jpg"},
    )
    assert [line.names for line in read_requests(file, NOTHING)] == [
        ("0001.png",),
        ("0002-1.png", "0002-2.png"),
        ("cats/one.webp",),
        ("two-1.jpg", "two-2.jpg"),
    ]


@pytest.mark.parametrize("name", ["/tmp/a.png", "../a.png", "a/../../b.png", "", ".", 5, ["a.png"]])
def test_a_name_stays_in_the_folder(tmp_path: Path, name: Any) -> None:
    assert "output must" in str(wrong(tmp_path, {"prompt": "a", "output": name}))


@pytest.mark.parametrize("name", ["a", "a.tiff", "images.jsonl", "a.safetensors"])
def test_a_name_says_which_kind_of_image(tmp_path: Path, name: str) -> None:
    assert "must end in .png" in str(wrong(tmp_path, {"prompt": "a", "output": name}))


def test_two_lines_cannot_have_one_name(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "output": "0002.png"}, {"prompt": "b"}]
    said = "line 2 of .*: its image would be 0002.png, and so would line 1's"
    with pytest.raises(BadLinesError, match=said):
        read_requests(written(tmp_path, *lines), NOTHING)


def test_one_wrong_line_is_told_in_a_sentence(tmp_path: Path) -> None:
    error = wrong(tmp_path, {"prompt": "a"}, "", {"prompt": "a", "steps": 0})
    file = tmp_path / "requests.jsonl"
    assert str(error) == (f"line 3 of {file}: steps must be a whole number of at least 1, not 0")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, 'there is no prompt; add one, as "prompt": "a cat"'),
        ({"prompt": None}, "there is no prompt"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "a", "sampler": "eulr"}, "did you mean 'euler'?"),
        ({"prompt": "a", "schedule": "karas"}, "did you mean 'karras'?"),
        ({"prompt": "a", "sigmas": [1, 2, 0]}, "sigmas"),
    ],
)
def test_requests_that_every_model_would_refuse(
    tmp_path: Path, line: dict[str, Any], said: str
) -> None:
    assert said in str(wrong(tmp_path, line))


def test_of_many_wrong_lines_ten_are_told_and_all_are_counted(tmp_path: Path) -> None:
    bad: list[dict[str, Any] | str] = [{"prompt": "a", "steps": -n} for n in range(12)]
    error = wrong(tmp_path, {"prompt": "a"}, *bad)
    assert [line.number for line in error.bad] == list(range(2, 12))
    assert error.bad[1].reason == "steps must be a whole number of at least 1, not -1"
    assert str(error).startswith(f"12 lines of {tmp_path / 'requests.jsonl'} are wrong")


def test_wrong_options_are_told_as_such_and_not_for_every_line(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    for common in (kdrt.Request(steps=0), kdrt.Request(schedule="karas")):
        with pytest.raises(InvalidRequestError, match=r"^(steps must|unknown schedule)"):
            read_requests(file, common)


def test_a_file_without_requests(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="there is no request in"):
        read_requests(written(tmp_path, "", " "), NOTHING)
    with pytest.raises(InvalidRequestError, match="No such file"):
        read_requests(tmp_path / "none.jsonl", NOTHING)


def test_images_are_counted_before_their_names_are_made(tmp_path: Path) -> None:
    file = written(tmp_path, *[{"prompt": "a", "images_per_prompt": 10_000}] * 101)
    with pytest.raises(InvalidRequestError, match=f"1010000 images are more than {MAX_FILES}"):
        read_requests(file, NOTHING)
