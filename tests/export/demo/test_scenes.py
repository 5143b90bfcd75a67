"""Scenes and captions: what the demo model is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_export.demo.scenes import (
    COLORS,
    KIND_WORDS,
    KINDS,
    Scene,
    Thing,
    caption,
    draw,
    is_held_out,
    outline,
    random_scene,
)

seeds = st.integers(0, 2**32)


@given(seed=seeds)
def test_things_stay_inside_the_image_and_differ_in_colour(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), held_out=None)
    colors = [thing.color for thing in scene.things] + [scene.background]
    assert len(set(colors)) == len(colors)
    for thing in scene.things:
        points = np.array([thing.x, thing.y]) + outline(thing.kind) * thing.radius
        assert points.min() > -0.02
        assert points.max() < 1.02


@given(seed=seeds)
def test_a_caption_names_every_thing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, held_out=None)
    text = caption(scene, rng)
    for thing in scene.things:
        assert any(f"{thing.color} {word}" in text for word in KIND_WORDS[thing.kind])


@given(seed=seeds)
def test_relations_and_places_are_where_the_caption_says(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), held_out=None)
    if scene.relation:
        first, second = scene.things
        dx, dy = second.x - first.x, second.y - first.y
        signs = {"left": dx, "right": -dx, "above": dy, "below": -dy}
        assert signs[scene.relation] > 0.3
    elif scene.place:
        (thing,) = scene.things
        signs = {
            "left": 0.5 - thing.x,
            "right": thing.x - 0.5,
            "top": 0.5 - thing.y,
            "bottom": thing.y - 0.5,
            "center": 0.05 - max(abs(thing.x - 0.5), abs(thing.y - 0.5)),
        }
        assert signs[scene.place] > 0


def test_training_and_held_out_scenes_never_meet() -> None:
    rng = np.random.default_rng(0)
    assert not any(is_held_out(random_scene(rng, held_out=False)) for _ in range(300))
    assert all(is_held_out(random_scene(rng, held_out=True)) for _ in range(300))
    share = np.mean([is_held_out(random_scene(rng, held_out=None)) for _ in range(2000)])
    assert 0.06 < share < 0.2


def test_a_drawn_scene_has_its_colours_at_its_size() -> None:
    scene = Scene((Thing("square", "red", 0.5, 0.5, 0.2),), "blue")
    image = draw(scene, 96, 64)
    assert image.size == (96, 64)
    assert image.getpixel((48, 32)) == COLORS["red"]
    assert image.getpixel((2, 2)) == COLORS["blue"]


def test_every_kind_has_an_outline() -> None:
    for kind in KINDS:
        assert np.abs(outline(kind)).max() <= 1.1
    with pytest.raises(ValueError, match="unknown kind 'hexagon'; the kinds are circle"):
        outline("hexagon")
