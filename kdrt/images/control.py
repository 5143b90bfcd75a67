"""Images that say where things are, for ControlNets and T2I-Adapters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class ControlImage:
    """An image, and how the ControlNet or T2I-Adapter called ``name`` uses it.

        pipe("a house", control=kdrt.ControlImage(drawing, process="scribble", scale=0.8))

    Attributes:
        image: as the control was trained on it, or as ``process`` takes it: a PIL image, an
            array ``[H, W, 3]`` or a tensor ``[3, H, W]`` of any size, which is brought to that of
            the result; grey ones too; or one for each prompt.
        name: of the control in the bundle; None where it has only one.
        scale: how much it counts; 0 is off.
        start, end: from which to which part of the steps it works, as fractions.
        process: made of the image first, a key of `kdrt.images.processors.PROCESSORS`.
    """

    image: object
    name: str | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    process: str | None = None
