"""The two k-diffusion pipelines that diffusers removed in 0.37, on engines.

    from kdrt.compat import StableDiffusionXLKDiffusionPipeline

    pipe = StableDiffusionXLKDiffusionPipeline.from_pretrained("path/to/model")
    pipe.set_scheduler("sample_dpmpp_2m")
    image = pipe("a red circle", use_karras_sigmas=True).images[0]

Same signatures, same grids, same noise: what changes is in the table of docs/compat.md. Nothing
here imports diffusers until a model has to be exported.

``sd`` and ``sdxl`` hold the classes and their signatures, ``base`` what they share. ``sources``
finds or makes the bundle. A call goes through ``checks``, ``encoding`` and ``sampling``; ``grid``
and ``noise`` are the originals' numbers, ``native`` samples with kdrt's plans and ``exact`` with
k-diffusion's own functions. What people read of the networks is in the files that end in
``_view``, diffusers' LoRA methods in those that begin with ``lora``.
"""

from __future__ import annotations

from kdrt.compat.outputs import StableDiffusionPipelineOutput, StableDiffusionXLPipelineOutput
from kdrt.compat.sd import StableDiffusionKDiffusionPipeline
from kdrt.compat.sdxl import StableDiffusionXLKDiffusionPipeline
from kdrt.denoise.freeu import FREEU_PRESETS

__all__ = [
    "FREEU_PRESETS",
    "StableDiffusionKDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "StableDiffusionXLKDiffusionPipeline",
    "StableDiffusionXLPipelineOutput",
]
