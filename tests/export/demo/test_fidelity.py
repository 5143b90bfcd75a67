"""The judge of images, and what it says of the shipped model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import kdrt
from kdrt_export.demo.fidelity import held_out_prompts, judge, largest_patch, score, silhouette_kind
from kdrt_export.demo.scenes import KINDS, Scene, Thing, draw, is_held_out

PROMPTS = held_out_prompts()


def test_the_prompts_are_held_out_and_fixed() -> None:
    assert len(PROMPTS) >= 200
    assert all(is_held_out(scene) for _, scene in PROMPTS)
    assert PROMPTS[:20] == held_out_prompts(20)
    assert 0.2 < np.mean([len(scene.things) == 2 for _, scene in PROMPTS]) < 0.4


def test_drawn_scenes_are_recognised() -> None:
    verdicts = [judge(draw(scene), scene) for _, scene in PROMPTS]
    assert score(verdicts) == 1.0
    assert all(verdict.background for verdict in verdicts)


def test_soft_edges_are_forgiven() -> None:
    blurred = [draw(scene).filter(ImageFilter.GaussianBlur(1)) for _, scene in PROMPTS]
    assert score(judge(i, scene) for i, (_, scene) in zip(blurred, PROMPTS, strict=True)) > 0.95


def test_the_image_of_another_prompt_is_not() -> None:
    others = PROMPTS[1:] + PROMPTS[:1]
    pairs = zip(PROMPTS, others, strict=True)
    assert score(judge(draw(other), scene) for (_, scene), (_, other) in pairs) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_property_is_enough_to_fail(kind: str) -> None:
    right = Scene((Thing(kind, "red", 0.5, 0.5, 0.25),), "white")
    wrong_color = Scene((Thing(kind, "green", 0.5, 0.5, 0.25),), "white")
    assert judge(draw(right), right).shown
    assert not judge(draw(wrong_color), right).shown
    for other in KINDS:
        image = draw(Scene((Thing(other, "red", 0.5, 0.5, 0.25),), "white"))
        assert judge(image, right).shown == (other == kind)


@pytest.mark.parametrize("kind", ["noise", "plain"])
def test_noise_and_plain_images_show_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(64, 64, 3)) if kind == "noise" else np.full((64, 64, 3), 22)
    image = Image.fromarray(pixels.astype(np.uint8))
    assert not any(judge(image, scene).shown for _, scene in PROMPTS)


def test_the_largest_patch() -> None:
    mask = np.zeros((6, 7), dtype=bool)
    mask[0, :3] = mask[2:5, 4:6] = True
    patch = largest_patch(mask)
    assert patch.sum() == 6
    assert patch[3, 5]
    assert silhouette_kind(np.ones((9, 9), dtype=bool)) == ("square", 1.0)


def test_the_shipped_model_draws_what_the_prompt_says(demo_bundle: Path) -> None:
    """A part of the score; ``benchmarks/fidelity.py`` gives the whole. With 40 prompts a model
    of 95 % stays below 85 % once in three hundred draws, and these draws are fixed."""
    prompts = PROMPTS[:40]
    pipe = kdrt.load(demo_bundle)
    images = pipe([text for text, _ in prompts], seed=0).images
    verdicts = [judge(image, scene) for image, (_, scene) in zip(images, prompts, strict=True)]
    assert score(verdicts) >= 0.85
