"""The words every loop shares: a denoiser, the noise of a run, a completed step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> denoised``, of the shape and dtype of ``x``, which it must not modify."""

Noise = Tensor | Callable[[int], Tensor] | None
"""The noise of a plan's slots; for an adaptive plan, a function from the number of an image to its
next draw."""


class HasUnconditional(Protocol):
    """A denoiser for samplers that need its result without guidance too (CFG++)."""

    @property
    def unconditional(self) -> Tensor:
        """The last result without guidance, of the shape and dtype of the guided one."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """A completed step. Its tensors are working buffers, valid until the next step is asked for.

    Attributes:
        index: 0 for the first step.
        sigma: noise level at the start of the step.
        sigma_next: noise level at its end.
        latents: the new state, of the latents' shape, dtype and device. If the next step begins
            with churn, that noise is already added.
        denoised: the newest result of the denoiser, a preview of the image.
    """

    index: int
    sigma: float
    sigma_next: float
    latents: Tensor
    denoised: Tensor
