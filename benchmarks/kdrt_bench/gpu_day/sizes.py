"""Models of real size with random weights, in float16: a step beside the same UNet as diffusers has
it, eager and compiled; and many images in flight.

All of them run in kdrt's own loop: what differs is the UNet, and what surrounds its launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import kdrt
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench.gpu_day.clock import in_turns, median, step_milliseconds
from kdrt_bench.gpu_day.rows import Figures
from kdrt_bench.gpu_day.setting import Measurement, Setting
from kdrt_bench.gpu_day.unexported import Unexported, unexported
from kdrt_bench.in_flight import PROMPT, measure_in_flight
from kdrt_engines.torch_eager import TorchEngine

AT_ONCE = (1, 2, 4, 8, 16)


def sd15(setting: Setting) -> Iterator[Measurement]:
    """Stable Diffusion 1.5."""
    return beside_pytorch("sd15", setting)


def sdxl(setting: Setting) -> Iterator[Measurement]:
    """Stable Diffusion XL."""
    return beside_pytorch("sdxl", setting)


def model(source: str, setting: Setting, *, controlled: bool = False) -> Unexported:
    """A model with random weights, with a ControlNet or without; in a rehearsal the demo."""
    return unexported(
        "demo" if setting.dry_run else source,
        setting.scratch(source),
        precision="fp32" if setting.dry_run else "fp16",
        device=torch.device(setting.device),
        random_weights=not setting.dry_run,
        controlled=controlled,
    )


def beside_pytorch(source: str, setting: Setting) -> Iterator[Measurement]:
    """How it was made; a row for each graph level, one for torch.compile; the other networks."""
    started = time.perf_counter()
    made = model(source, setting)
    seconds = time.perf_counter() - started
    yield "made", partial(_facts, made, seconds)
    eager = image_of(made.pipeline("off", made.plain))
    for level in CUDA_GRAPH_LEVELS:
        yield (
            f"kdrt {level}, eager UNet",
            partial(compared, image_of(made.pipeline(level)), eager, setting),
        )

    def compiled() -> Figures:
        # Inductor's kernels are the point on a GPU, and take a minute on a CPU.
        backend = "eager" if setting.dry_run else "inductor"
        network: Any = torch.compile(made.plain, dynamic=False, backend=backend)
        return compared(image_of(made.pipeline("off", network)), eager, setting)

    yield "torch.compile, eager UNet", compiled
    yield "whole image, kdrt step", partial(_whole, made.pipeline("step"), setting)


def in_flight(setting: Setting) -> Iterator[Measurement]:
    """Images a second, for some numbers of images at once."""
    pipe = model("sd15", setting).pipeline("step")
    for images in AT_ONCE[:2] if setting.dry_run else AT_ONCE:

        def measured(images: int = images) -> Figures:
            found = measure_in_flight(pipe, setting.steps, setting.rounds, 0, at_once=(images,))
            (together,) = found.together
            return {
                "images/s": together.per_second,
                "tick ms": together.tick,
                "rows": together.rows,
                "host µs": together.host,
                "launches": together.launches,
                "graph launches": together.graph_launches,
                "waits": together.waits,
                "one alone, batcher / pipeline": found.lone.ratio,
            }

        yield f"{images} at once", measured


Image = Callable[[int], object]
"""Makes the latents of an image of so many steps."""


def image_of(pipe: Pipeline, **asked: Any) -> Image:
    """As a pipeline makes it."""
    return lambda steps: pipe(PROMPT, seed=7, steps=steps, output_type="latent", **asked)


def compared(image: Image, eager: Image, setting: Setting) -> Figures:
    """A step of both, in turns."""
    ours, theirs, ratio = in_turns(
        partial(step_milliseconds, image, setting.steps),
        partial(step_milliseconds, eager, setting.steps),
        setting.rounds,
    )
    found: Figures = {
        "step ms": ours,
        "eager ms": theirs,
        "of eager": ratio.median,
        "rounds": ratio.n,
    }
    if ratio.low is not None and ratio.high is not None:
        found |= {"at least": ratio.low, "at most": ratio.high}
    return found


def _facts(made: Unexported, seconds: float) -> Figures:
    unet = made.engines["unet"]
    assert isinstance(unet, TorchEngine)
    latents = made.bundle.manifest.latents
    found: Figures = {
        "seconds": seconds,
        "precision": made.bundle.manifest.precision,
        "UNet, M parameters": sum(each.numel() for each in unet.module.parameters()) / 1e6,
        "pixels": f"{latents.default_width}x{latents.default_height}",
    }
    if torch.cuda.is_available():
        found["GB allocated, with the eager UNet"] = torch.cuda.memory_allocated() / 1e9
    return found


def _whole(pipe: kdrt.Pipeline, setting: Setting) -> Figures:
    """The parts of an image, and what it takes at most."""

    def text() -> object:
        pipe.prompt_encoder.invalidate()  # or it would be remembered
        return pipe.encode_prompt(PROMPT)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    latents = pipe(PROMPT, seed=7, steps=2, output_type="latent").images
    decode = pipe.cuda_stream.calling(pipe.vae.decoder)
    found: Figures = {
        "text ms": median(text, setting.rounds),
        "VAE ms": median(lambda: decode(latents), setting.rounds),
        f"image of {setting.steps} steps ms": median(
            lambda: pipe(PROMPT, seed=7, steps=setting.steps, output_type="pt"), setting.rounds
        ),
    }
    if torch.cuda.is_available():
        found["peak GB, with the eager UNet"] = torch.cuda.max_memory_allocated() / 1e9
    return found
