"""Outlines: drawn where the things are, and told from others."""

from __future__ import annotations

import numpy as np

from kdrt_export.demo.fidelity import held_out_prompts
from kdrt_export.demo.outlines import draw_outlines, outline_overlap
from kdrt_export.demo.scenes import Scene, Thing, draw, silhouette

SCENES = [scene for _, scene in held_out_prompts(60)]


def test_a_square_gives_the_lines_of_its_border() -> None:
    scene = Scene((Thing("square", "red", 0.5, 0.5, 0.25),), "white")
    lines = np.asarray(draw_outlines(scene, 40, 40))[..., 0]
    # 0.9 of a radius of 10 pixels, around the centre at 20.
    expected = np.zeros((40, 40), np.uint8)
    expected[11:29, 11:29] = 255
    expected[12:28, 12:28] = 0
    np.testing.assert_array_equal(lines, expected)


def test_outlines_lie_inside_the_things_on_every_size_of_image() -> None:
    for scene in SCENES[:10]:
        for width, height in ((64, 64), (96, 64), (64, 96)):
            lines = np.asarray(draw_outlines(scene, width, height))[..., 0] > 0
            inside = silhouette(scene, width, height)
            assert lines.shape == inside.shape == (height, width)
            assert 0 < lines.sum() < inside.sum()
            assert not (lines & ~inside).any()


def test_a_drawn_scene_follows_its_own_outlines_and_not_anothers() -> None:
    own = [outline_overlap(draw(scene), scene) for scene in SCENES]
    others = SCENES[1:] + SCENES[:1]
    foreign = [
        outline_overlap(draw(other), scene) for scene, other in zip(SCENES, others, strict=True)
    ]
    assert min(own) > 0.8
    assert np.mean(own) > 0.95
    assert np.mean(foreign) < 0.4
