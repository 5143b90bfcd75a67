"""Scenes of coloured shapes: the demo model's training data and its held-out prompts.

A :class:`Scene` is one or two :class:`Thing` on a plain background. It can be drawn
(:func:`draw`), told (:func:`caption`), and sampled (:func:`random_scene`). Every eighth
combination of kinds and colours is held out of training (:func:`is_held_out`), so that the
fidelity score measures composition, not memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 25),
    "yellow": (250, 220, 50),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "purple": (135, 55, 175),
    "white": (245, 245, 245),
    "black": (22, 22, 22),
}
KINDS = ("circle", "square", "triangle", "star", "heart", "cross")

KIND_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus sign"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "center": ("in the center", "in the middle", "in the centre"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
}
RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One shape: ``x``, ``y`` its centre and ``radius`` half its width, as fractions of the
    image's width, height and shorter side."""

    kind: str
    color: str
    x: float
    y: float
    radius: float
    size: str | None = None
    """``small`` or ``large`` where the caption may say so; ``None`` for in between."""


@dataclass(frozen=True)
class Scene:
    """What an image shows. ``place`` belongs to a single thing, ``relation`` to a pair: the
    first thing stands ``relation`` the second."""

    things: tuple[Thing, ...]
    background: str
    place: str | None = None
    relation: str | None = None


def outline(kind: str) -> np.ndarray:
    """The shape's polygon in the box [-1, 1]², y pointing down, as float64 [N, 2]."""
    if kind == "circle":
        turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        return np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if kind == "square":
        return np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])
    if kind == "triangle":
        return np.array([(0, -1), (1, 0.85), (-1, 0.85)])
    if kind == "star":
        turn = np.arange(10) * math.pi / 5 - math.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.45)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    if kind == "heart":
        turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x / 16, -(y + 2.5) / 15], axis=1)
    if kind == "cross":
        a = 0.34
        arm = np.array([(-a, -1), (a, -1), (a, -a)])
        quarter = np.array([(0, 1), (-1, 0)])  # (x, y) → (−y, x), clockwise since y points down
        return np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])
    raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")


def draw(scene: Scene, width: int = 64, height: int = 64) -> Image.Image:
    """Rasterise a scene with antialiased edges, as an RGB image."""
    scale = _SUPERSAMPLING
    canvas = Image.new("RGB", (width * scale, height * scale), COLORS[scene.background])
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        centre = np.array([thing.x * width, thing.y * height])
        points = (centre + outline(thing.kind) * thing.radius * min(width, height)) * scale
        pen.polygon([(float(x), float(y)) for x, y in points], fill=COLORS[thing.color])
    return canvas.resize((width, height), Image.Resampling.BOX)


def silhouette(scene: Scene, width: int = 64, height: int = 64) -> np.ndarray:
    """Where the scene's things are, as bool [H, W]: pixels that they cover by half or more."""
    things = tuple(replace(thing, color="white") for thing in scene.things)
    drawn = np.asarray(draw(Scene(things, "black"), width, height))[..., 0]
    return drawn >= (COLORS["white"][0] + COLORS["black"][0]) / 2


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Tell a scene in one of many wordings. Size, place and background may go unsaid."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    def name(thing: Thing) -> str:
        size = ""
        if thing.size and rng.random() < 0.8:
            size = pick(SIZE_WORDS[thing.size]) + " "
        phrase = f"{size}{thing.color} {pick(KIND_WORDS[thing.kind])}"
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    background = scene.background
    article = "an" if background[0] in "aeiou" else "a"
    ground = ""
    if rng.random() < 0.9:
        ground = " " + pick(
            (
                f"on {article} {background} background",
                f"on {article} {background} background",
                f"against {article} {background} background",
                f"on {background}",
            )
        )
    if len(scene.things) == 1:
        place = ""
        if scene.place and rng.random() < 0.8:
            place = " " + pick(PLACE_WORDS[scene.place])
        text = f"{name(scene.things[0])}{place}{ground}"
    else:
        first, second = scene.things
        assert scene.relation is not None
        joint = pick(RELATION_WORDS[scene.relation]) if rng.random() < 0.75 else "and"
        text = f"{name(first)} {joint} {name(second)}{ground}"
    if rng.random() < 0.15:
        text = pick(("an image of ", "a drawing of ")) + text
    return text


def is_held_out(scene: Scene) -> bool:
    """Whether the combination of kinds and colours is kept out of training (one in eight)."""
    parts = [f"{thing.color} {thing.kind}" for thing in scene.things]
    if len(parts) == 1:
        parts.append(scene.background)
    return zlib.crc32(" / ".join(parts).encode()) % 8 == 0


def random_scene(
    rng: np.random.Generator, *, pairs: float = 0.4, held_out: bool | None = False
) -> Scene:
    """Sample a scene.

    Args:
        rng: source of randomness.
        pairs: probability of two things instead of one.
        held_out: ``False`` for training combinations only, ``True`` for held-out ones only,
            ``None`` for any.
    """
    while True:
        scene = _random_pair(rng) if rng.random() < pairs else _random_single(rng)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _colors(rng: np.random.Generator, count: int) -> list[str]:
    return [str(c) for c in rng.choice(list(COLORS), size=count, replace=False)]


def _random_single(rng: np.random.Generator) -> Scene:
    color, background = _colors(rng, 2)
    kind = str(rng.choice(KINDS))
    size = rng.choice(["small", "large", ""], p=[0.3, 0.35, 0.35])
    low, high = {"small": (0.14, 0.18), "large": (0.30, 0.38), "": (0.20, 0.28)}[str(size)]
    radius = float(rng.uniform(low, high))
    place = str(
        rng.choice(["center", "left", "right", "top", "bottom", ""], p=[0.2] + [0.12] * 4 + [0.32])
    )
    margin = radius + 0.04
    x, y = 0.5, 0.5
    if place == "":
        x, y = rng.uniform(margin, 1 - margin, size=2)
    elif place == "center":
        x, y = rng.uniform(0.46, 0.54, size=2)
    else:
        near = rng.uniform(margin, max(margin + 0.01, 0.36))
        across = rng.uniform(max(margin, 0.4), min(1 - margin, 0.6)) if margin < 0.5 else 0.5
        x, y = {
            "left": (near, across),
            "right": (1 - near, across),
            "top": (across, near),
            "bottom": (across, 1 - near),
        }[place]
    thing = Thing(kind, color, float(x), float(y), radius, str(size) or None)
    return Scene((thing,), background, place=place or None)


def _random_pair(rng: np.random.Generator) -> Scene:
    color, other, background = _colors(rng, 3)
    kind, other_kind = (str(k) for k in rng.choice(KINDS, size=2))
    relation = str(rng.choice(list(RELATION_WORDS)))
    radius, other_radius = (float(r) for r in rng.uniform(0.16, 0.215, size=2))
    near, far = rng.uniform(0.25, 0.28), rng.uniform(0.72, 0.75)
    across, other_across = rng.uniform(0.38, 0.62, size=2)
    first, second = {
        "left": ((near, across), (far, other_across)),
        "right": ((far, across), (near, other_across)),
        "above": ((across, near), (other_across, far)),
        "below": ((across, far), (other_across, near)),
    }[relation]
    things = (
        Thing(kind, color, float(first[0]), float(first[1]), radius),
        Thing(other_kind, other, float(second[0]), float(second[1]), other_radius),
    )
    return Scene(things, background, relation=relation)
