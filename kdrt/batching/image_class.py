"""Which images can share a UNet run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from kdrt.adapters.lora_merge import Scale
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.denoise.row_denoiser import ImageShape
from kdrt.pipeline.encoding import conditioning_length
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.job import Job, latent_shape

Loras = Mapping[str, Scale]

OWN = "own"
"""Stands for the LoRAs that the pipeline has by itself."""


class ImageClass(NamedTuple):
    """What images have in common that can share a UNet run.

    Attributes:
        shape: of the images; None for those that cannot share.
        loras: stands for their LoRAs, and is the group.
        inputs: of the UNet that have one value for the whole run, or decide which network runs.
    """

    shape: ImageShape | None
    loras: Hashable
    inputs: Hashable = None


def class_of(pipe: Pipeline, job: Job, loras: Loras | None, *, shared: bool) -> ImageClass:
    """The class of a job's images.

    Args:
        pipe: what makes them.
        job: see there.
        loras: at these scales; None is those that the pipeline has.
        shared: whether they can share at all.
    """
    group: Hashable = OWN
    if loras is not None:
        used = {name: scale for name, scale in loras.items() if scale != 0}
        group = tuple(sorted((name, repr(scale)) for name, scale in used.items()))
    if not shared:
        return ImageClass(None, group)
    _, height, width = latent_shape(pipe.bundle.manifest, job.height, job.width)
    tokens = conditioning_length(pipe.prompt_encoder, job, doubled=pipe.is_doubled(job))
    return ImageClass(ImageShape(height, width, tokens), group, _inputs(pipe, job))


def _inputs(pipe: Pipeline, job: Job) -> Hashable:
    unet = pipe.denoising.unet
    spec = unet.spec
    values: list[tuple[float, ...]] = []
    if spec.has_input("freeu"):
        if spec.input("freeu").shape[0] != "B":
            values.append(job.freeu)
        elif "freeu" in unet.neutral_inputs:
            # Rounding would tell whether an image without it was beside one with it.
            values.append((float(job.freeu == FREEU_OFF),))
    if spec.has_input("ip_scale"):
        has_image = job.ip_adapter_image is not None or job.ip_adapter_image_embeds is not None
        values.append((job.ip_adapter_scale if has_image else 0.0,))
    return tuple(values)
