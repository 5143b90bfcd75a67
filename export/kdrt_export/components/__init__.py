"""The networks of a bundle, as modules with plain tensors in and out, ready to be traced.

Inputs and outputs have the frozen names of the bundle; sizes are symbols: ``B`` batch, ``L``
prompt tokens, ``h`` and ``w`` latent sizes, ``H`` and ``W`` pixel sizes.

Its files:

    base             what all components share
    text_encoder     CLIP text models
    unet             the UNet
    conditioning     how time and prompt enter it, and ControlNets
    residuals        what ControlNets and T2I-Adapters add to it
    controlnet       ControlNets, in two networks
    t2i_adapter      T2I-Adapters
    perturbed_unet   the UNet for perturbed-attention guidance
    shallow_unet     its outermost layers, for deep cache
    vae              the two halves of the VAE
    upscaler         networks that enlarge images
    image_prompt     an IP-Adapter's image encoder and projection
    vision           CLIP's vision models and the safety checker
    preview_decoder  a small decoder for previews
    preview_factors  the affine map from latents to a small image
    sizes            numbers in diffusers' configurations
"""

from kdrt_export.components.base import ExportComponent
from kdrt_export.components.text_encoder import ExportTextEncoder, ExportTextLayer
from kdrt_export.components.unet import ExportUNet, call_unet, latent_size
from kdrt_export.components.vae import (
    ExportDecoder,
    ExportVaeDecoder,
    ExportVaeEncoder,
    image_shape,
    vae_scale,
    vae_tile,
)

__all__ = [
    "ExportComponent",
    "ExportDecoder",
    "ExportTextEncoder",
    "ExportTextLayer",
    "ExportUNet",
    "ExportVaeDecoder",
    "ExportVaeEncoder",
    "call_unet",
    "image_shape",
    "latent_size",
    "vae_scale",
    "vae_tile",
]
