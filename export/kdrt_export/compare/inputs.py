"""What goes into both sides: the inputs of a real denoising step, or random numbers."""

from __future__ import annotations

from torch import Tensor

import kdrt
from kdrt.bundle import Bundle, Component
from kdrt.errors import InvalidRequestError
from kdrt_engines.comparison import random_inputs
from kdrt_export.recording import Recorder

PROMPT = "a red circle on a blue background"
STEPS = 3
"""Of the generation whose inputs are taken: the middle one is at a middle noise level."""


def real_inputs(
    bundle: Bundle, component: str, *, height: int | None, width: int | None, prompt: str, seed: int
) -> dict[str, Tensor]:
    """What a component is given while an image is made: the UNet in the middle step, others when
    they run first.

    Args:
        bundle: makes the image, with the engine that it would be generated with.
        component: of the bundle.
        height, width: of the image in pixels; None is the bundle's own.
        prompt: of the image.
        seed: of the image.

    Raises:
        InvalidRequestError: the size is impossible, or the component takes no part in an image
            that is made from text.
    """
    pipe = kdrt.load(bundle)
    if component not in pipe.engines:
        raise InvalidRequestError(_no_part(component))
    recorder = Recorder(pipe.engines[component])
    pipe.replace_engines({component: recorder})
    pipe(prompt, height=height, width=width, steps=STEPS, seed=seed)
    if not recorder.calls:
        raise InvalidRequestError(_no_part(component))
    return recorder.calls[len(recorder.calls) // 2 if component == "unet" else 0].inputs


def seeded_inputs(
    bundle: Bundle, component: Component, *, height: int | None, width: int | None, seed: int
) -> dict[str, Tensor]:
    """Normally distributed numbers for one image, indices 0.

    Raises:
        InvalidRequestError: the size is no multiple of the latents'.
    """
    latents = bundle.manifest.latents
    sides = {"h": height or latents.default_height, "w": width or latents.default_width}
    for side in sides.values():
        if side % latents.scale:
            raise InvalidRequestError(
                f"height and width must be multiples of {latents.scale} pixels, not {side}"
            )
    dims = {symbol: side // latents.scale for symbol, side in sides.items()}
    dims |= {"B": 1, "L": bundle.manifest.text_encoders[0].max_length}
    return random_inputs(component.spec(), dims, seed)


def _no_part(component: str) -> str:
    return (
        f"'{component}' takes no part in an image that is made from text; compare it on random "
        "numbers with --random"
    )
