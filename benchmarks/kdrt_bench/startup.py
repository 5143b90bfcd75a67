"""From nothing to the first image, in a process that does nothing else.

    python -m kdrt_bench.startup PEER BUNDLE SOURCE BEGUN

``BEGUN`` is the caller's ``time.monotonic()`` just before it started this process. Prints one line
of JSON: seconds by stage. Imports stand where they are timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

PROMPT = "a red circle on a blue background"
STEPS = 20
STAGES = ("python", "torch", "import", "load", "image")


class Marks:
    """Seconds between marks, by stage."""

    def __init__(self, begun: float) -> None:
        self._last = begun
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """A stage is over."""
        now = time.monotonic()
        self.seconds[stage] = now - self._last
        self._last = now


def kdrt_image(bundle: str, marks: Marks) -> None:
    """As a user of kdrt has it."""
    import torch  # noqa: F401

    marks.mark("torch")
    from kdrt import load

    marks.mark("import")
    pipe = load(bundle)
    marks.mark("load")
    pipe(PROMPT, seed=7, steps=STEPS, sampler="euler")
    marks.mark("image")


def diffusers_image(source: str, marks: Marks) -> None:
    """As a user of diffusers has it, from the folder that the bundle was exported from."""
    import torch

    marks.mark("torch")
    from diffusers import DiffusionPipeline, EulerDiscreteScheduler

    marks.mark("import")
    folder = source
    if source == "demo":
        from kdrt_export.sources import demo_folder

        folder = str(demo_folder())
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    marks.mark("load")
    pipe(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(7))
    marks.mark("image")


def main(arguments: Sequence[str]) -> None:
    """Run one of both."""
    peer, bundle, source, begun = arguments
    marks = Marks(float(begun))
    marks.mark("python")
    if peer == "kdrt":
        kdrt_image(bundle, marks)
    else:
        diffusers_image(source, marks)
    print(json.dumps(marks.seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
