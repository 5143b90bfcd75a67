"""What the acceptance tests on a GPU share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import kdrt
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from tests.support.image_arrays import as_tensor

LEVELS: tuple[CudaGraphLevel, ...] = ("off", "step", "loop")
PROMPT = "a red circle on a blue background"
FAST: dict[str, Any] = {"steps": 8, "seed": 7, "output_type": "latent"}


def latents(pipe: kdrt.Pipeline, **options: Any) -> Tensor:
    """The latents of a fast image."""
    return as_tensor(pipe(PROMPT, **FAST | options).images)


def sizes(engine: Any) -> dict[str, int]:
    """Where a TensorRT engine is fastest."""
    found: dict[str, int] = engine.profiles[0].sizes("opt")
    return found


class Quiet:
    def start(self, stage: str) -> None: ...
    def running(self, detail: str, memory: int) -> None: ...
    def done(self, detail: str = "") -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def close(actual: Tensor, expected: Tensor, bound: float) -> None:
    error = (actual.cpu() - expected.cpu()).norm() / expected.cpu().norm()
    assert error < bound, f"relative error {error:.2e}"
