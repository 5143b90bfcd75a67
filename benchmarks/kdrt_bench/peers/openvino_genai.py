"""OpenVINO GenAI's Text2ImagePipeline: the whole loop in C++, as its users run it.

Static shapes, which its documentation recommends for speed; the rest as installed. It reads a
folder of OpenVINO models as optimum-intel writes them: here they are made from diffusers' and
transformers' own modules, since optimum-intel asks for older packages than kdrt's export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino_genai
import torch

from kdrt.bundle import Bundle
from kdrt.sampling import SeededNoise
from kdrt_bench.genai_folder import TIMESTEP_SPACING, check_scheduler, check_steps, genai_folder
from kdrt_bench.jobs import BenchJob, ImageWorkload
from kdrt_bench.peers.base import WholeImages
from kdrt_bench.runners import Runner, guidance_of, latent_shape, pixels_of
from kdrt_bench.stages import StageClock
from kdrt_engines.openvino.quiet import ov


class OpenVinoGenAi(WholeImages):
    """Options: ``precision``, OpenVINO's INFERENCE_PRECISION_HINT; without it OpenVINO chooses."""

    packages = ("openvino-genai", "openvino", "openvino-tokenizers")

    def __init__(self, job: BenchJob, bundle: Bundle, options: Mapping[str, str]) -> None:
        super().__init__(job, bundle, options)
        check_scheduler(bundle.manifest.scheduler)

    def prepare(self, components: Sequence[str]) -> None:
        genai_folder(self)

    def configuration(self) -> dict[str, str]:
        """What its models are compiled with."""
        hints = {"INFERENCE_NUM_THREADS": str(self.threads)}
        if "precision" in self.options:
            hints["INFERENCE_PRECISION_HINT"] = self.options["precision"]
        return hints

    def settings(self) -> dict[str, str]:
        return {
            **self.configuration(),
            "shapes": "static",
            "converted from": "PyTorch",
            "scheduler": f"EulerDiscreteScheduler, {TIMESTEP_SPACING}: kdrt's noise levels",
            "output": "8 bits",
        }

    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner:
        facts = self.bundle.manifest.scheduler
        check_steps(workload.steps, facts.num_train_timesteps)
        height, width = pixels_of(self.bundle, workload)
        guidance = guidance_of(self.bundle, workload)
        pipeline = openvino_genai.Text2ImagePipeline(str(genai_folder(self)))
        pipeline.reshape(workload.batch, height, width, guidance)
        pipeline.compile("CPU", **self.configuration())
        seeds = range(workload.seed, workload.seed + workload.batch)
        latents = SeededNoise(seeds, latent_shape(self.bundle, workload)).latents()
        steps = 0

        def count(step: int, _steps: int, _latent: Any) -> bool:
            nonlocal steps
            steps = step + 1
            return False

        made: list[np.ndarray] = []

        def run() -> None:
            images = pipeline.generate(
                workload.prompt,
                height=height,
                width=width,
                num_inference_steps=workload.steps,
                guidance_scale=guidance,
                num_images_per_prompt=workload.batch,
                generator=_Given(latents),
                callback=count,
            )
            self.check_steps_made(steps, workload)
            made[:] = [images.data.astype(np.float32) / 255]
            _count_stages(pipeline.get_performance_metrics(), clock)

        return Runner(run, lambda: made)


class _Given(openvino_genai.Generator):  # type: ignore[misc]
    """Gives these latents, whatever is asked for."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self._latents = latents.numpy()

    def randn_tensor(self, shape: Sequence[int]) -> Any:
        return ov.Tensor(self._latents.reshape(tuple(shape)).copy())


def _count_stages(metrics: Any, clock: StageClock) -> None:
    """Milliseconds of its own metrics: text encoders, UNet and VAE without what is around them."""
    encode = sum(metrics.get_text_encoder_infer_duration().values())
    denoise = sum(metrics.raw_metrics.unet_inference_durations) / 1000
    clock.add("encode", encode / 1000)
    clock.add("denoise", denoise / 1000)
    clock.add("decode", metrics.get_vae_decoder_infer_duration() / 1000)
