"""From the control images of a job to what its ControlNets and T2I-Adapters are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdrt.bundle.components import CONTROL_HINT
from kdrt.denoise.controls import Control
from kdrt.request.controls import JobControl
from kdrt_engines import Engine


@torch.no_grad()
def encode_controls(
    controls: Sequence[JobControl],
    images: int,
    shape: tuple[int, int],
    load: Callable[[str], Engine],
) -> tuple[Control, ...]:
    """Compute what depends on the images alone.

    Args:
        controls: of a job.
        images: B, how many images are made.
        shape: rows and columns of the latents.
        load: gives the engine of a component.

    Raises:
        ShapeError: an engine does not allow these sizes.
    """
    return tuple(_encoded(control, images, shape, load) for control in controls)


def _encoded(
    control: JobControl, images: int, shape: tuple[int, int], load: Callable[[str], Engine]
) -> Control:
    component = control.component.name
    engine = load(component + CONTROL_HINT if control.component.is_network else component)
    height, width = shape
    binding = engine.bind(B=len(control.pixels), h=height, w=width)
    binding.inputs["image"].copy_(control.pixels)
    binding.run()
    each = images // len(control.pixels)

    def for_images(made: Tensor) -> Tensor:
        return made.repeat_interleave(each, dim=0)  # a copy: the next run overwrites it

    return Control(
        component=control.component,
        images={name: for_images(made) for name, made in binding.outputs.items()},
        scale=control.scale,
        window=control.window,
        guess=control.guess,
        fades=control.fades,
    )
