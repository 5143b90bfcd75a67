"""The perturbed-attention guidance of a request, if it means anything."""

from __future__ import annotations

from kdrt.bundle import Manifest
from kdrt.bundle.components import PAG, PAG_INPUT
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt_engines import EngineSpec


def perturbed_attention_of(
    request: Request, manifest: Manifest, unet: EngineSpec
) -> PerturbedAttention | None:
    """How far results are led away from perturbed ones; None for not at all.

    Args:
        request: complete.
        manifest: of the model.
        unet: inputs of the loaded UNet.

    Raises:
        InvalidRequestError: this UNet has no perturbed rows, or other fields do not go with them.
    """
    scale, adaptive = request["pag_scale"], request["pag_adaptive_scale"]
    if scale == 0:
        if adaptive:
            raise InvalidRequestError(
                "pag_adaptive_scale belongs to pag_scale, which is 0; set that, or leave "
                "pag_adaptive_scale out"
            )
        return None
    if not unet.has_input(PAG_INPUT):
        raise InvalidRequestError(
            f"pag_scale needs the variant {PAG} of the UNet; export the model with "
            f"`{manifest.export_command} --variant {PAG}`"
        )
    if request["guidance_method"] != "cfg":
        raise InvalidRequestError(
            f"pag_scale goes with guidance_method='cfg', and it is "
            f"{request['guidance_method']!r}; set that, or leave pag_scale out"
        )
    if request["deep_cache"] is not None:
        raise InvalidRequestError(
            "pag_scale and deep_cache do not go together, since the layers left out are those that "
            "are perturbed; leave one of them out"
        )
    return PerturbedAttention(scale, adaptive)
