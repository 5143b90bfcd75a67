"""Prompt fidelity: does an image hold the named shapes in the named colours?

Plain image analysis, no network: every pixel is given to the nearest palette colour, the
largest connected patch of the wanted colour is taken, and its silhouette is compared with
every kind of shape stretched to the patch's bounding box (intersection over union). A thing
counts as shown when the named kind fits best, fits well, and is of a sensible size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from kdrt_export.demo.scenes import COLORS, KINDS, Scene, Thing, caption, outline, random_scene

MIN_AREA = 0.012
"""Smallest patch that counts as a thing, as a fraction of the image."""
MIN_OVERLAP = 0.6
"""Smallest intersection over union with the named kind that counts as that kind, where no other
kind fits better. A pixel of blur around the thin arms of a star costs a third already."""
HELD_OUT_PROMPTS = 240
_HELD_OUT_SEED = 20261123


@dataclass(frozen=True)
class Verdict:
    """What one image shows of its scene."""

    things: tuple[bool, ...]
    background: bool

    @property
    def shown(self) -> bool:
        """Whether every named shape is there in its named colour."""
        return all(self.things)


def held_out_prompts(count: int = HELD_OUT_PROMPTS) -> list[tuple[str, Scene]]:
    """The first ``count`` prompts of the fixed held-out list, three in ten with two things.
    None of their combinations of kinds and colours was seen in training."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    prompts = []
    for _ in range(count):
        scene = random_scene(rng, pairs=0.3, held_out=True)
        prompts.append((caption(scene, rng), scene))
    return prompts


def judge(image: Image.Image, scene: Scene) -> Verdict:
    """Judge one RGB image against the scene its prompt describes."""
    labels = nearest_colors(image)
    return Verdict(
        things=tuple(_shows(labels, thing) for thing in scene.things),
        background=border_color(labels) == scene.background,
    )


def score(verdicts: Iterable[Verdict]) -> float:
    """The share of images that show every named shape in its named colour."""
    return float(np.mean([verdict.shown for verdict in verdicts]))


def nearest_colors(image: Image.Image) -> np.ndarray:
    """The index into ``COLORS`` of each pixel's nearest colour, as int64 [H, W]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    distances: np.ndarray = ((pixels[:, :, None] - palette) ** 2).sum(-1)
    return distances.argmin(-1)


def silhouette_kind(mask: np.ndarray) -> tuple[str, float]:
    """The kind whose outline, stretched to the mask's bounding box, overlaps it best, and that
    overlap (intersection over union). ``mask`` is bool [H, W] and not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    patch = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    overlaps = {kind: _overlap(patch, _template(kind, *patch.shape)) for kind in KINDS}
    best = max(overlaps, key=lambda kind: overlaps[kind])
    return best, overlaps[best]


def _shows(labels: np.ndarray, thing: Thing) -> bool:
    mask = largest_patch(labels == list(COLORS).index(thing.color))
    if not MIN_AREA <= mask.mean() <= 0.6:
        return False
    kind, overlap = silhouette_kind(mask)
    return kind == thing.kind and overlap >= MIN_OVERLAP


def largest_patch(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected patch of a bool [H, W] mask, as a mask of the same shape."""
    # Label propagation: every pixel repeatedly takes the largest label of its neighbourhood.
    # Images are small, so this stays simpler than union-find and needs no SciPy.
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce(
            [labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, spread, 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    if not mask.any():
        return mask
    values, counts = np.unique(labels[mask], return_counts=True)
    largest: np.ndarray = labels == values[counts.argmax()]
    return largest


def border_color(labels: np.ndarray) -> str:
    """The colour of most pixels of the image's border: its background."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return list(COLORS)[int(np.bincount(border, minlength=len(COLORS)).argmax())]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


@lru_cache(maxsize=4096)
def _template(kind: str, height: int, width: int) -> np.ndarray:
    scale = 8
    points = outline(kind)
    low, high = points.min(0), points.max(0)
    points = (points - low) / (high - low) * np.array([width, height]) * scale
    canvas = Image.new("L", (width * scale, height * scale), 0)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) >= 128
