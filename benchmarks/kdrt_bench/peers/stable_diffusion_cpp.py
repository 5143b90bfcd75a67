"""stable-diffusion.cpp, through its Python package: the whole loop in C++ on ggml."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import stable_diffusion_cpp

from kdrt_bench.ggml_model import check_architecture, ggml_model
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.peers.base import WholeImages
from kdrt_bench.runners import Runner, guidance_of, noise_levels, pixels_of
from kdrt_bench.stages import StageClock


class StableDiffusionCpp(WholeImages):
    """Options: ``weights``, the type its file was converted to: f32, f16 or q8_0."""

    packages = ("stable-diffusion-cpp-python",)
    _theirs: Any = None

    def prepare(self, components: Sequence[str]) -> None:
        check_architecture(self.model)
        ggml_model(self, self.options["weights"])

    def settings(self) -> dict[str, str]:
        return {
            "weights": self.options["weights"],
            "threads": str(self.threads),
            "backend": "CPU, built for this processor",
            "sampler": "euler on kdrt's noise levels",
            "noise": "its imitation of torch's CPU generator",
            "output": "8 bits",
        }

    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner:
        if self._theirs is None:
            self._theirs = stable_diffusion_cpp.StableDiffusion(
                model_path=str(ggml_model(self, self.options["weights"])),
                n_threads=self.threads,
                rng_type="cpu",
                sampler_rng_type="cpu",
                vae_decode_only=True,
                verbose=False,
            )
        theirs = self._theirs
        height, width = pixels_of(self.bundle, workload)
        sigmas = ",".join(f"{level:.9g}" for level in noise_levels(self.bundle, workload.steps))
        guidance = guidance_of(self.bundle, workload)
        marks: list[tuple[int, float]] = []
        made: list[np.ndarray] = []

        def run() -> None:
            marks.clear()
            begun = time.perf_counter()
            images = theirs.generate_image(
                workload.prompt,
                height=height,
                width=width,
                sample_method="euler",
                sample_steps=workload.steps,
                sigmas=sigmas,
                cfg_scale=guidance,
                batch_count=workload.batch,
                seed=workload.seed,
                progress_callback=lambda step, steps, _: marks.append((step, time.perf_counter())),
            )
            ended = time.perf_counter()
            # They come with an alpha channel.
            colours = [np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]
            made[:] = [np.stack(colours) / 255]
            # It tells of step 0 when the prompt is encoded, and of the others when they are done.
            steps = sum(step > 0 for step, _ in marks)
            self.check_steps_made(steps / workload.batch, workload)
            clock.add("encode", marks[0][1] - begun)
            clock.add("denoise", marks[-1][1] - marks[0][1])
            clock.add("decode", ended - marks[-1][1])

        return Runner(run, lambda: made)
