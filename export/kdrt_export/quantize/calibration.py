"""What a UNet is given while images are made: calibration on its own trajectories.

Activations grow and shrink with the noise level, so samples are taken all over a generation, of
both halves of guidance, as the pipeline itself passes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
import torch

import kdrt
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt_export.demo.fidelity import held_out_prompts
from kdrt_export.demo.scenes import caption, random_scene
from kdrt_export.quantize.ranges import Sample
from kdrt_export.recording import Recorder

STEPS = 20
"""Of a generation."""

EVERY = 3
"""Of the evaluations of a generation one in so many is kept; of the next prompt the ones behind."""

PROMPTS = 16
"""Unless the user says another number. That makes 107 samples; NVIDIA's recipe for SDXL has 128."""

_SEED = 1_000_000
"""Of the first prompt. Images for which the loss is measured have others."""

_GENERAL = (
    "a photograph of a mountain lake at sunrise, mist over the water",
    "portrait of an old fisherman with a grey beard, studio lighting",
    "a bowl of ramen on a wooden table, steam rising, close-up",
    "an isometric illustration of a small city block at night",
    "a red vintage car parked on a street in Lisbon",
    "watercolour painting of a fox in a snowy forest",
    "a futuristic train station, wide angle, concept art",
    "a cat sleeping on a stack of books, soft window light",
    "macro photograph of a dragonfly on a blade of grass",
    "a poster of a lighthouse in a storm, flat design",
    "an astronaut walking through a field of sunflowers",
    "interior of a scandinavian living room, natural light",
    "a marble statue of a woman covered by a veil",
    "a bustling market in Marrakesh, colourful spices, film photograph",
    "a dragon flying over a castle, fantasy oil painting",
    "a plate with strawberry cheesecake, food photography",
    "black and white photograph of a jazz band on stage",
    "a robot reading a newspaper in a café",
    "aerial view of a river delta in autumn",
    "a child's drawing of a house with a sun",
    "a knight in silver armour, close-up of the helmet",
    "minimalist logo of a hummingbird",
    "underwater photograph of a coral reef with a sea turtle",
    "a crowded subway carriage, anime style",
)
"""For models of pictures of any kind."""


def default_prompts(bundle: Bundle, count: int) -> list[str]:
    """Prompts for a bundle that the user gave none for. The demo model knows coloured shapes only,
    and gets captions of the kind it was trained on.

    Raises:
        InvalidRequestError: the number is out of range.
    """
    if is_demo(bundle):
        rng = np.random.default_rng(_SEED)
        return [caption(random_scene(rng), rng) for _ in range(_checked(count, 10_000))]
    return list(_GENERAL[: _checked(count, len(_GENERAL))])


def other_prompts(bundle: Bundle, calibration: int | Sequence[str], count: int) -> tuple[str, ...]:
    """Prompts for images that are compared before and after: others of kdrt's as far as there are
    some, or the user's own; with other seeds than those of the calibration."""
    if not isinstance(calibration, int):
        return tuple(islice(cycle(calibration), count))
    if is_demo(bundle):
        return tuple(text for text, _ in held_out_prompts(count))
    return tuple(islice(cycle(_GENERAL[calibration:] or _GENERAL), count))


def is_demo(bundle: Bundle) -> bool:
    """Whether it is the model that comes with kdrt."""
    return bundle.manifest.source == "demo"


def _checked(count: int, most: int) -> int:
    if not 1 <= count <= most:
        raise InvalidRequestError(
            f"--calibration takes 1 to {most} of kdrt's own prompts, not {count}; for more give a "
            "file with one prompt on each line"
        )
    return count


@dataclass(frozen=True)
class Evaluation:
    """One run of the UNet in a generation.

    Attributes:
        sigma: the noise level.
        dims: the sizes that it was bound to.
        inputs: by name, a row for each half of guidance and image.
        outputs: by name.
    """

    sigma: float
    dims: Mapping[str, int]
    inputs: Sample
    outputs: Sample


def trajectory(
    pipe: kdrt.Pipeline,
    prompt: str,
    *,
    seed: int,
    height: int | None = None,
    width: int | None = None,
    output_type: Literal["np", "latent"] = "latent",
) -> tuple[list[Evaluation], Any]:
    """Make an image, and keep what goes through the UNet.

    Args:
        pipe: makes it; at the end it has the engine that it had.
        prompt: of the image.
        seed: of the image.
        height, width: in pixels; None is the model's own.
        output_type: of the image.

    Returns:
        The evaluations in order, and what ``Result.images`` is.
    """
    engine = pipe.engines["unet"]
    recorder = Recorder(engine)
    pipe.replace_engines({"unet": recorder})
    try:
        # Euler's method evaluates once a step.
        generation = pipe.stream(
            prompt,
            seed=seed,
            steps=STEPS,
            sampler="euler",
            height=height,
            width=width,
            output_type=output_type,
        )
        sigmas = [step.sigma for step in generation]
        images = generation.result().images
    finally:
        pipe.replace_engines({"unet": engine})
    evaluations = [
        Evaluation(sigma, call.dims, _arrays(call.inputs), _arrays(call.outputs))
        for sigma, call in zip(sigmas, recorder.calls, strict=True)
    ]
    return evaluations, images


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Sample:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def calibration_samples(
    pipe: kdrt.Pipeline,
    prompts: Sequence[str],
    *,
    height: int | None = None,
    width: int | None = None,
) -> list[Evaluation]:
    """Some evaluations of an image for each prompt, spread over the noise levels."""
    chosen = []
    for number, prompt in enumerate(prompts):
        whole, _ = trajectory(pipe, prompt, seed=_SEED + number, height=height, width=width)
        # Of the first image the last one too, where errors are largest.
        chosen += whole[(len(whole) - 1 - number) % EVERY :: EVERY]
    return chosen
