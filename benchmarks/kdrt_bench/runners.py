"""Runs a workload once: kdrt's pipeline on whatever engines, or a single network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdrt.backends.choice import needed_components
from kdrt.bundle import Bundle
from kdrt.request.grid import training_table
from kdrt.sampling import sigmas_for
from kdrt_bench.inputs import example_inputs
from kdrt_bench.jobs import Forward, ImageWorkload, Server
from kdrt_engines import Engine

if TYPE_CHECKING:
    from kdrt.pipeline.pipeline import Pipeline
    from kdrt_bench.stages import TimedEngine

SAMPLER, SCHEDULE = "euler", "trailing"
"""What every peer can: OpenVINO GenAI takes no noise levels, and has those of whole timesteps."""

Outputs = list[np.ndarray]


@dataclass(frozen=True)
class Runner:
    """A workload, ready to run.

    Attributes:
        run: what is timed.
        outputs: what the last run made; images are float32 ``[B, H, W, 3]`` in [0, 1].
    """

    run: Callable[[], object]
    outputs: Callable[[], Outputs]


def needed(bundle: Bundle) -> list[str]:
    """The components that a generation runs."""
    return list(needed_components(bundle.manifest))


def noise_levels(bundle: Bundle, steps: int) -> list[float]:
    """What every peer samples on; the last is 0."""
    table = training_table(bundle.manifest.scheduler)
    levels: list[float] = sigmas_for(SCHEDULE, steps, table).tolist()
    return levels


def pixels_of(bundle: Bundle, workload: ImageWorkload) -> tuple[int, int]:
    """Height and width of a workload's images."""
    facts = bundle.manifest.latents
    return workload.height or facts.default_height, workload.width or facts.default_width


def latent_shape(bundle: Bundle, workload: ImageWorkload) -> tuple[int, int, int]:
    """``(C, h, w)`` of the latents of one of a workload's images."""
    facts = bundle.manifest.latents
    height, width = pixels_of(bundle, workload)
    return facts.channels, height // facts.scale, width // facts.scale


def guidance_of(bundle: Bundle, workload: ImageWorkload) -> float:
    """The guidance scale of a workload."""
    if workload.guidance is None:
        return bundle.manifest.default_guidance_scale
    return workload.guidance


def generator(pipeline: Pipeline, unet: TimedEngine, workload: ImageWorkload) -> Runner:
    """Prompt to pixels with a pipeline, whose UNet is ``unet``."""
    made: list[np.ndarray] = []

    def run() -> None:
        if not workload.remember_prompt:
            pipeline.prompt_encoder.invalidate()
            unet.invalidate()
        result = pipeline(
            workload.prompt,
            steps=workload.steps,
            sampler=SAMPLER,
            schedule=SCHEDULE,
            height=workload.height,
            width=workload.width,
            images_per_prompt=workload.batch,
            guidance_scale=workload.guidance,
            seed=workload.seed,
            output_type="np",
        )
        made[:] = [np.asarray(result.images, dtype=np.float32)]

    return Runner(run, lambda: made)


def caller(engines: Mapping[str, Engine], workload: Forward) -> Runner:
    """One call of a network, its inputs written beforehand."""
    engine = engines[workload.component]
    binding = engine.bind(**workload.dims)
    for name, value in example_inputs(engine.spec, workload.dims, workload.seed).items():
        binding.inputs[name].copy_(value)
    return Runner(
        binding.run,
        lambda: [tensor.float().cpu().numpy().copy() for tensor in binding.outputs.values()],
    )


def serve(run: Callable[[], object], workload: Server) -> list[float]:
    """Serve requests that arrive at random, in order; seconds from arrival to answer."""
    gaps = random.Random(workload.seed)
    arrival, latencies = 0.0, []
    begun = time.perf_counter()
    for _ in range(workload.requests):
        arrival += gaps.expovariate(workload.rate)
        now = time.perf_counter() - begun
        if max(now, arrival) > workload.limit:
            break
        if now < arrival:
            time.sleep(arrival - now)
        run()
        latencies.append(time.perf_counter() - begun - arrival)
    return latencies
