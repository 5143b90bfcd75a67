"""The two k-diffusion pipelines that diffusers removed in 0.37, on engines.

    from kdrt.compat import StableDiffusionXLKDiffusionPipeline

    pipe = StableDiffusionXLKDiffusionPipeline.from_pretrained("path/to/model")
    pipe.set_scheduler("sample_dpmpp_2m")
    image = pipe("a red circle", use_karras_sigmas=True).images[0]

Signatures, noise levels and noise are those of the originals; docs/reference/compat.md lists what
differs. Nothing here imports diffusers until a model has to be exported. A call goes through
``checks``, ``encoding`` and ``sampling``.

Its files:

    sd                 Stable Diffusion 1 and 2: the class and its signatures
    sdxl               the same for SDXL
    base               what both share
    arguments          the loading arguments of diffusers
    loading            opening, sharing and saving
    sources            finds the bundle of a model, or exports it
    export_hint        how to export again with what a bundle lacks
    checks             checks of a call's arguments
    encoding           prompts to embeddings
    conditions         what the UNet is told besides the latents
    sampling           the choice of a sampler, and its run
    grid               the originals' σ grids
    noise              the originals' random numbers
    native             samples with kdrt's plans
    plans              plans that follow k-diffusion's float32 arithmetic
    exact              samples with k-diffusion's own functions
    outputs            what a call returns
    progress           a progress bar as tqdm's
    image_processor    diffusers' ``VaeImageProcessor``
    config             configurations as diffusers shows them
    parts              the parts of a pipeline by diffusers' names
    network_view       what people read of a network
    unet_view          the same of the UNet
    vae_view           the same of the VAE
    text_views         the same of text encoders and tokenizers
    scheduler_view     the same of the scheduler
    absent             attributes that are not here: what to use instead
    device_arguments   the arguments of ``to(…)``
    switches           switches that have no effect on engines
    qkv                switches for fused projections
    vae                switches of the VAE
    safety             what may take the safety checker's place
    ip_adapter         diffusers' IP-Adapter methods
    textual_inversion  diffusers' methods for textual inversion
    lora               diffusers' LoRA methods
    lora_source        where a LoRA comes from
    lora_state         which are active, how strong, which fused
    lora_blocks        their weights by block
    lora_saving        ``save_lora_weights``
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
