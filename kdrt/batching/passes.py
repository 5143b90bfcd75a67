"""What the passes of an order begin with: prompts and noise, and what an earlier pass has made."""

from __future__ import annotations

from torch import Tensor

from kdrt.batching.image_class import class_of
from kdrt.batching.order import Order
from kdrt.batching.scheduler import Entry
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.pipeline.second_pass import begin_second_pass
from kdrt.request.job import SecondPass


def entries_of(order: Order, pipe: Pipeline) -> list[Entry]:
    """What the scheduler is told of the images of an order, in this pass of it."""
    job = order.current
    klass = class_of(pipe, job, order.spec, order.loras, shared=order.is_shared)
    return order.entries(klass, rows=pipe.parts_of(job).rows)


def prepare_first(order: Order, pipe: Pipeline) -> None:
    """Encode the prompts of an order, and draw its noise.

    Raises:
        InvalidRequestError: the pipeline has another UNet by now.
    """
    if pipe.denoising.unet.spec != order.spec:
        raise InvalidRequestError(
            "another variant is in use than when these images were asked for; ask again"
        )
    encoded = pipe.encode(order.job)
    run = pipe.prepare(order.job, encoded)
    order.prepared(encoded, run, pipe.adapters.lora_settings)


def prepare_second(order: Order, second: SecondPass, latents: Tensor, pipe: Pipeline) -> None:
    """Enlarge what the first pass has made, ``latents [B, C, h, w]``, and begin the second."""
    assert order.encoded is not None  # the first pass had to be told of the prompts
    job = begin_second_pass(second, latents, pipe.vae, pipe.engines.__getitem__)
    order.begin_second_pass(job, pipe.prepare(job, order.encoded))
