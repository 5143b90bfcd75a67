"""Outlines of scenes: what the demo model's ControlNet is shown, and whether an image follows them.

:func:`draw_outlines` draws a scene as an edge detector would see it, exactly, from the scene's
polygons; :func:`outline_overlap` compares where an image has things with where a scene has them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from kdrt_export.demo.fidelity import border_color, nearest_colors
from kdrt_export.demo.scenes import COLORS, Scene, silhouette


def draw_outlines(scene: Scene, width: int = 64, height: int = 64) -> Image.Image:
    """White lines on black, one pixel wide and not antialiased, as an RGB image.

    A pixel belongs to the outline when it lies inside a thing and one of its four neighbours does
    not: what Canny's detector gives for a clean edge, to within a pixel.
    """
    inside = silhouette(scene, width, height)
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return Image.fromarray(np.where(inside & ~surrounded, 255, 0).astype(np.uint8)).convert("RGB")


def outline_overlap(image: Image.Image, scene: Scene) -> float:
    """How well an image's things cover the scene's, whatever their colours: intersection over
    union of the pixels that differ from the image's background and the scene's silhouette."""
    labels = nearest_colors(image)
    drawn = labels != list(COLORS).index(border_color(labels))
    wanted = silhouette(scene, *image.size)
    return float((drawn & wanted).sum() / max((drawn | wanted).sum(), 1))
