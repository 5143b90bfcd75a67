"""``kdrt generate --like``, and the names of its options that other programs have."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdrt.images.infotext import parse_infotext
from kdrt.images.output import read_infotext
from tests.support.command_line import Cli

PROMPT = "a (red:1.2) circle"
FAST = ("--steps", "3", "--no-progress")


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


def told(path: Path) -> dict[str, str]:
    return parse_infotext(read_infotext(path) or "")


@pytest.fixture
def image(cli: Cli, demo: str, tmp_path: Path) -> Path:
    """One with settings of many kinds."""
    path = tmp_path / "a.png"
    done = cli(
        *("generate", demo, PROMPT, "-o", path, *FAST, "--negative-prompt", "blurry, dark"),
        *("--weighting", "a1111", "--sampler", "DPM++ 2M SDE Karras", "--size", "64x72"),
        *("--sampler-option", "eta=0.7", "--cfg-scale", "4.5", "--seed", "7"),
        *("--freeu", "1.1,1.2,0.9,0.8", "--guidance-interval", "0.3:9"),
    )
    assert done.code == 0, done.err
    return path


def test_the_same_image_again(cli: Cli, demo: str, image: Path, tmp_path: Path) -> None:
    again = tmp_path / "b.png"
    done = cli("generate", demo, "--like", image, "-o", again, "--no-progress")
    assert (done.code, done.err) == (0, "")
    assert read_infotext(again) == read_infotext(image)
    assert np.array_equal(pixels(again), pixels(image))


def test_the_command_that_info_shows(cli: Cli, demo: str, image: Path, tmp_path: Path) -> None:
    import json

    known = json.loads(cli("info", image, "--json").out)
    assert "Not in the command" not in known
    shown = known["Command"]
    again = tmp_path / "b.png"
    done = cli(*shlex.split(shown)[1:], "-o", again, "--no-progress")
    assert done.code == 0, done.err
    assert np.array_equal(pixels(again), pixels(image))


def test_changes_replace_what_the_image_tells(
    cli: Cli, demo: str, image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.png"
    changes = ("--prompt", "a green star", "--sampler", "heun", "-n", "2")
    done = cli("generate", demo, "--like", image, *changes, "-o", other, "--no-progress")
    assert done.code == 0, done.err
    first, second = (told(tmp_path / name) for name in ("b-1.png", "b-2.png"))
    assert (first["Prompt"], first["Sampler"]) == ("a green star", "Heun")
    assert "Eta" not in first
    assert (first["Seed"], second["Seed"]) == ("7", "8")
    kept = ("Steps", "CFG scale", "Size", "Emphasis", "FreeU b1", "Negative prompt")
    assert {key: first[key] for key in kept} == {key: told(image)[key] for key in kept}


def test_an_image_of_another_model_or_with_more_is_told(
    cli: Cli, demo: str, tmp_path: Path
) -> None:
    from kdrt.images.output import save_image

    text = "a\nSteps: 2, Sampler: Euler a, Seed: 3, Size: 64x64, Model: other, Hires prompt: c"
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", text)
    done = cli("generate", demo, "--like", path, "-o", tmp_path / "b.png", "--no-progress")
    assert done.code == 0, done.err
    assert "warning: not taken over from the image: Hires prompt (c)" in done.err
    assert "warning: that image was made with the model 'other', and this is 'demo'" in done.err
    assert told(tmp_path / "b.png")["RNG"] == "NV"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no prompt"),
        (("a", "--prompt", "b"), "--prompt is another way to give a prompt: use only one"),
        (("a", "--size", "64"), "--size takes width and height, as in 1024x768, not '64'"),
        (("a", "--size", "64x64", "--width", "72"), "--size says the width too, and --width"),
        (("a", "--like", "nothing.png"), "nothing.png"),
        (("a", "--weighting", "A1112"), "unknown --prompt-weighting 'A1112'; known: none, a1111"),
        (("a", "--guidance-method", "agp"), "unknown --guidance-method 'agp'; known: cfg, apg"),
    ],
)
def test_what_does_not_go_together(
    cli: Cli, demo: str, arguments: tuple[str, ...], message: str
) -> None:
    assert message in cli("generate", demo, *arguments).refusal()


def test_a_mistyped_option_names_the_right_one(cli: Cli, demo: str) -> None:
    done = cli("generate", demo, "a", "--guidence", "3")
    assert done.code == 2
    assert "--guidance" in done.err
