"""The guidance method of a request, if it means anything."""

from __future__ import annotations

from kdrt.bundle import Manifest
from kdrt.denoise.bound_unet import GUIDANCE_INPUT
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.guidance_methods import CFG, GuidanceMethod
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import FIELDS, Request
from kdrt.sampling import AnyPlan
from kdrt_engines import EngineSpec

_OF_APG = ("apg_eta", "apg_threshold")


def guidance_method_of(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    plan: AnyPlan,
    guidance_scale: float,
) -> GuidanceMethod:
    """How the results with and without guidance are combined.

    Args:
        request: complete.
        manifest: of the model.
        unet: inputs of the loaded UNet.
        plan: says whether the sampler needs results without guidance.
        guidance_scale: of the request, or the default in its place.

    Raises:
        InvalidRequestError: there are no results without guidance, or other fields do not go with
            the method.
    """
    name = request["guidance_method"]
    if name != "apg":
        for field in _OF_APG:
            if request[field] != FIELDS[field].default:  # type: ignore[literal-required]
                raise InvalidRequestError(
                    f"{field} belongs to guidance_method='apg', and it is {name!r}; set that, or "
                    f"leave {field} out"
                )
    if name == "cfg":
        return CFG
    if unet.has_input(GUIDANCE_INPUT):
        raise InvalidRequestError(
            f"guidance_method={name!r} combines results with and without guidance, and "
            f"'{manifest.name}' is distilled to give guided ones only; leave it out"
        )
    if request["guidance_rescale"] > 0:
        raise InvalidRequestError(
            f"guidance_rescale belongs to guidance_method='cfg', and it is {name!r}; set that, or "
            "leave guidance_rescale out"
        )
    if not is_doubled(unet, guidance_scale, asked=plan.needs_unconditional):
        raise InvalidRequestError(
            f"guidance_method={name!r} would be of no effect: at guidance_scale="
            f"{guidance_scale:g} there is no guidance; leave it out, or set it to 'cfg'"
        )
    return GuidanceMethod(name, request["apg_eta"], request["apg_threshold"])
