"""Images that say where things are, for ControlNets and T2I-Adapters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class ControlImage:
    """An image, and how the ControlNet or T2I-Adapter called ``name`` uses it.

        pipe("a house", control=kdrt.ControlImage(drawing, process="scribble", scale=0.8))

    Attributes:
        image: an image of the kind that the control was trained on, or one that ``process`` turns
            into it: a PIL image, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``, in colour or
            grey, or one for each prompt. It may have any size and is resized to that of the result.
        name: the name of the control in the bundle; None if the bundle has only one.
        scale: how much the control counts; 0 is off.
        start, end: the part of the steps in which the control works, as fractions from 0 to 1.
        process: the processor to apply to the image first, a key of
            `kdrt.images.processors.PROCESSORS`; None for none.
    """

    image: object
    name: str | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    process: str | None = None
