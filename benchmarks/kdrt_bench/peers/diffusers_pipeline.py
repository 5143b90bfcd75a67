"""diffusers' own pipeline, as its users run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdrt.sampling import SeededNoise
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.networks import resident, source_of
from kdrt_bench.peers.base import WholeImages
from kdrt_bench.runners import Runner, guidance_of, latent_shape, noise_levels, pixels_of
from kdrt_bench.stages import StageClock


class DiffusersPipeline(WholeImages):
    """No options."""

    _theirs: Any = None

    def settings(self) -> dict[str, str]:
        return {
            "dtype": "float32",
            "scheduler": "EulerDiscreteScheduler on kdrt's noise levels",
            "threads": str(torch.get_num_threads()),
            "weights": "resident",
        }

    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner:
        if self.bundle.manifest.scheduler.edm is not None:
            raise PeerUnavailableError(
                "diffusers' EDM schedulers cannot be given kdrt's noise levels, so this model has "
                "no image to compare; leave 'diffusers' out of --vs"
            )
        if self._theirs is None:
            self._theirs = _pipeline(self, clock)
        pipeline = self._theirs
        height, width = pixels_of(self.bundle, workload)
        shape = latent_shape(self.bundle, workload)
        # The scheduler keeps float32 noise levels; the last is the 0 it adds by itself otherwise.
        sigmas = noise_levels(self.bundle, workload.steps)
        noise = SeededNoise(range(workload.seed, workload.seed + workload.batch), shape)
        latents = noise.latents().to(pipeline.device)

        made: list[np.ndarray] = []

        def run() -> None:
            images = pipeline(
                workload.prompt,
                height=height,
                width=width,
                sigmas=sigmas,
                guidance_scale=guidance_of(self.bundle, workload),
                num_images_per_prompt=workload.batch,
                latents=latents.clone(),
                output_type="np",
            ).images
            made[:] = [np.asarray(images, dtype=np.float32)]

        return Runner(run, lambda: made)


def _pipeline(peer: WholeImages, clock: StageClock) -> Any:
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )

    source = source_of(peer.model)
    # With any other spacing the scheduler scales the first latents differently.
    scheduler = EulerDiscreteScheduler.from_config(source.scheduler, timestep_spacing="linspace")
    parts: dict[str, Any] = {"unet": source.unet(), "vae": source.vae(), "scheduler": scheduler}
    for index in range(source.text_encoders):
        suffix = "_2" if index else ""
        parts[f"text_encoder{suffix}"] = source.text_encoder(index)
        parts[f"tokenizer{suffix}"] = source.tokenizer(index)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if name in parts:
            resident(parts[name].float())
    if source.family == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            **parts,
            force_zeros_for_empty_prompt=source.zeros_for_empty_negative,
            add_watermarker=False,
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipeline.to("cuda")
    _time(pipeline.unet, "forward", "denoise", clock)
    _time(pipeline.vae, "decode", "decode", clock)
    _time(pipeline, "encode_prompt", "encode", clock)
    return pipeline


def _time(owner: Any, method: str, stage: str, clock: StageClock) -> None:
    """Count the time of a method as a stage."""
    original: Callable[..., Any] = getattr(owner, method)

    def call(*arguments: Any, **options: Any) -> Any:
        begun = clock.begin()
        try:
            return original(*arguments, **options)
        finally:
            clock.end(stage, begun)

    setattr(owner, method, call)
