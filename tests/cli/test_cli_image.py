"""``kdrt generate`` from an image, on the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command_line import Cli

FAST = ("--steps", "4", "--no-progress", "--seed", "3")


def test_from_an_image_with_and_without_a_mask(cli: Cli, demo: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image, mask = tmp_path / "in.png", tmp_path / "mask.png"
    Image.fromarray(noise).save(image)
    area = np.zeros((64, 96), np.uint8)
    area[:, 48:] = 255
    Image.fromarray(area).save(mask)

    plain = tmp_path / "plain.png"
    outcome = cli(
        "generate", demo, "a star", "--image", image, "--strength", 0.5, "-o", plain, *FAST
    )
    assert (outcome.code, outcome.out) == (0, f"{plain}\tseed 3\n"), outcome.err
    assert Image.open(plain).size == (96, 64)
    known = json.loads(cli("info", plain, "--json").out)
    assert known["Denoising strength"] == "0.5"
    assert known["Not in the command"] == "Init image (given), Denoising strength (0.5)"

    masked = tmp_path / "masked.png"
    outcome = cli("generate", demo, "a star", "--image", image, "--mask", mask, "-o", masked, *FAST)
    assert outcome.code == 0, outcome.err
    result = np.asarray(Image.open(masked))
    assert np.array_equal(result[:, :48], noise[:, :48])
    assert not np.array_equal(result[:, 48:], noise[:, 48:])


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"text", "it is no image, or damaged")]
)
def test_an_image_that_cannot_be_read(
    cli: Cli, home: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    image = tmp_path / "in.png"
    if content is not None:
        image.write_bytes(content)
    outcome = cli("generate", "demo", "a star", "--image", image, "-o", tmp_path / "out.png")
    assert f"cannot read {image}: {words}" in outcome.refusal()
