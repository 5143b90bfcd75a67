"""Requests that cannot share: their runs, a step at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kdrt.batching.order import Order
from kdrt.pipeline.pipeline import Pipeline
from kdrt.sampling import Step
from kdrt.vae.preview import PreviewStep, with_previews


def next_step(
    order: Order, pipe: Pipeline, decode: Callable[[Tensor], Tensor]
) -> PreviewStep | None:
    """The next step of a prepared order; None after the last, when the order has its latents.

    Args:
        order: one that cannot share.
        pipe: what makes it.
        decode: for whoever looks at a step.

    Raises:
        Whatever a sampler of the user's raises.
    """
    assert order.run is not None
    if order.steps is None:
        steps = pipe.denoising.sample(order.run, watched=True)
        order.steps = with_previews(steps, pipe.previewer, decode)
    try:
        return next(order.steps)
    except StopIteration as end:
        latents: Tensor = end.value
        for place in range(order.images):
            order.sampled(place, latents[place : place + 1])
        return None


def of_one_image(step: Step, place: int) -> Step:
    """A step of several images as that of one of them."""
    one = slice(place, place + 1)
    return Step(step.index, step.sigma, step.sigma_next, step.latents[one], step.denoised[one])
