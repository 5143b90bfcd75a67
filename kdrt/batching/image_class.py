"""Which images can share a UNet run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from kdrt.adapters.lora_merge import Scale
from kdrt.adapters.unet_features import Features
from kdrt.denoise.conditioning_store import ImageShape
from kdrt.denoise.controls import ControlComponent
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.pipeline.encoding import conditioning_length
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.job import Job, latent_shape
from kdrt_engines import EngineSpec

Loras = Mapping[str, Scale]

OWN = "own"
"""Stands for the LoRAs that the pipeline has by itself."""


class ImageClass(NamedTuple):
    """What images have in common that can share a UNet run.

    Attributes:
        shape: of the images; None for those that cannot share.
        loras: stands for their LoRAs.
        unet_features: of the UNet that makes them.
        controls: that act on all of them.
        inputs: of the UNet that have one value for the whole run, or decide which network runs.
    """

    shape: ImageShape | None
    loras: Hashable
    unet_features: Features = ()
    controls: tuple[ControlComponent, ...] = ()
    inputs: Hashable = None

    @property
    def group(self) -> Hashable:
        """What stands for the networks that make them: groups take turns."""
        return self.loras, self.unet_features


def class_of(
    pipe: Pipeline, job: Job, unet: EngineSpec, loras: Loras | None, *, shared: bool
) -> ImageClass:
    """The class of a job's images.

    Args:
        pipe: what makes them.
        job: see there.
        unet: the UNet that makes them.
        loras: at these scales; None is those that the pipeline has.
        shared: whether they can share at all.
    """
    group: Hashable = OWN
    if loras is not None:
        used = {name: scale for name, scale in loras.items() if scale != 0}
        group = tuple(sorted((name, repr(scale)) for name, scale in used.items()))
    if not shared:
        return ImageClass(None, group, job.unet_features)
    _, height, width = latent_shape(pipe.bundle.manifest, job.height, job.width)
    tokens = conditioning_length(pipe.prompt_encoder, job, doubled=pipe.is_doubled(job))
    shape = ImageShape(height, width, tokens)
    controls = tuple(control.component for control in job.controls)
    return ImageClass(shape, group, job.unet_features, controls, _inputs(pipe, job, unet))


def _inputs(pipe: Pipeline, job: Job, spec: EngineSpec) -> Hashable:
    values: list[tuple[float, ...]] = []
    if spec.has_input("freeu"):
        if spec.input("freeu").shape[0] != "B":
            values.append(job.freeu)
        elif "freeu" in pipe.denoising.unet.neutral_inputs:
            # Rounding would tell whether an image without it was beside one with it.
            values.append((float(job.freeu == FREEU_OFF),))
    if spec.has_input("ip_scale") and spec.input("ip_scale").shape[0] != "B":
        values.append((0.0 if job.image_prompt is None else float(job.image_prompt.scale),))
    return tuple(values)
