"""Requests as JSON objects."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdrt.cli.request_json import FILE_FIELDS, json_object, json_request, with_files
from kdrt.common.validation import MAX_TEXT
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import FIELDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a cat", "it is no JSON: Expecting value, column 1"),
        (b'{"prompt": ', "it is no JSON: Expecting value, column 12"),
        (b'{"prompt": "caf\xe9"}', "it is not UTF-8"),
        (b"[1, 2]", r'a JSON object such as {"prompt": "a cat"}, not \[1, 2\]'),
        (b'"a cat"', "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "a number of more digits"),
    ],
)
def test_what_is_no_object_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        json_object(text)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stepz", 1, "no field 'stepz'; did you mean 'steps'"),
        ("prompt", ["a", 5], "prompt must be a string or a list of strings"),
        ("prompt", "a \ud800", "prompt holds half a character"),
        ("prompt", "a" * (MAX_TEXT + 1), "characters long"),
        ("steps", "20", "steps must be a whole number of at least 1, not '20'"),
        ("steps", None, "steps must be a whole number"),
        ("steps", 0, "steps must be a whole number of at least 1, not 0"),
        ("width", 5, "width must be a whole number of at least 8"),
        ("strength", 1.5, "strength must be a number above 0 and at most 1, not 1.5"),
        ("seed", True, "seed must be a whole number or a list of whole numbers"),
        ("seed", [1, "2"], "seed must be a whole number or a list of whole numbers"),
        ("sampler", 5, "sampler must be a string, not 5"),
        ("sigmas", "1,0", "sigmas must be a list of numbers"),
        ("sampler_options", ["eta"], "sampler_options must be a mapping from names to values"),
        ("schedule_options", {"rho": [5]}, "schedule_options must be an object of names"),
        ("freeu", [1.1, 1.2], "freeu must be a list of 4 numbers or a string"),
        ("original_size", [64], "original_size must be a list of 2 whole numbers"),
        ("keep_unmasked", 1, "keep_unmasked must be true or false"),
        ("prompt_weighting", "comfyui", "unknown prompt_weighting 'comfyui'"),
        ("guidance_scale", float("nan"), "guidance_scale must be a finite number"),
        ("prompt_embeds", [1.0], "prompt_embeds cannot be given as JSON"),
        ("image", 5, "image must be the name of a file, not 5"),
        ("image", "none.png", "none.png: No such file"),
        ("latents", "none.safetensors", "there is no file"),
    ],
)
def test_values_that_are_refused(tmp_path: Path, field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        json_request({"prompt": "a", field: value}, tmp_path)


def test_right_values_stay_as_they_are(tmp_path: Path) -> None:
    fields = {
        "prompt": ["a", "b"],
        "negative_prompt": None,
        "seed": [1, 2**64 - 1],
        "steps": 3,
        "sampler": "DPM++ 2M Karras",
        "sampler_options": {"solver_type": "heun", "eta": 0.5},
        "guidance_interval": [0.3, 5.4],
        "guidance_scale": 5,
        "freeu": "sd15",
        "target_size": [64, 96],
        "keep_unmasked": False,
    }
    assert json_request(fields, tmp_path) == fields


def test_files_are_found_beside_the_requests_and_read_later(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    fields = {"prompt": "a", "image": "red.png", "mask_image": str(tmp_path / "mask.png")}
    request = json_request(fields, tmp_path)
    assert request == {
        "prompt": "a",
        "image": tmp_path / "red.png",
        "mask_image": tmp_path / "mask.png",
    }
    read: Any = with_files(request)
    assert read["prompt"] == "a"
    assert read["image"].getpixel((0, 0)) == (255, 0, 0)
    assert read["mask_image"].mode == "L"
    (tmp_path / "red.png").unlink()
    with pytest.raises(InvalidRequestError, match="No such file"):
        with_files(request)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_text("a cat")
    with pytest.raises(InvalidRequestError, match="not an image that Pillow knows"):
        json_request({"prompt": "a", "image": "cat.png"}, tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from([*FIELDS, "other"]), json_values)
def test_any_value_is_taken_or_refused(field: str, value: Any) -> None:
    with suppress(InvalidRequestError):
        request = json_request({field: value}, Path("nowhere"))
        assert field not in FILE_FIELDS or value is None
        assert set(request) <= {field}
