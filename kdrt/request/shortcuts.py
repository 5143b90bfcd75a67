"""The shortcuts of a request: a guidance interval and a deep cache, if they mean anything."""

from __future__ import annotations

from kdrt.adapters.unet_features import features_of
from kdrt.bundle import Manifest
from kdrt.bundle.components import DEEP_CACHE, DEEP_FEATURE, SHALLOW_UNET
from kdrt.denoise.bound_unet import GUIDANCE_INPUT
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.shortcuts import Shortcuts, check_deep_cache, check_interval
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt.sampling import AnyPlan
from kdrt_engines import EngineSpec


def shortcuts_of(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    plan: AnyPlan,
    guidance_scale: float,
) -> Shortcuts:
    """The shortcuts of a request, checked against the model, the plan and the guidance.

    Raises:
        InvalidRequestError: they are no such values, or would be of no effect.
    """
    limits = cached = None
    if request["guidance_interval"] is not None:
        limits = check_interval("guidance_interval", request["guidance_interval"])
        _check_guided(request, manifest, unet, plan, guidance_scale)
    if request["deep_cache"] is not None:
        cached = check_deep_cache("deep_cache", request["deep_cache"])
        _check_deep_cache(manifest, unet)
    return Shortcuts(limits, cached)


def _check_guided(
    request: Request, manifest: Manifest, unet: EngineSpec, plan: AnyPlan, guidance_scale: float
) -> None:
    """Whether an interval of guidance means anything."""
    if plan.needs_unconditional:
        raise InvalidRequestError(
            f"{plan.sampler} needs results without guidance at every noise level; take a "
            "sampler without CFG++, or leave guidance_interval out"
        )
    if not is_doubled(unet, guidance_scale) and not request["pag_scale"]:
        reason = (
            f"'{manifest.name}' is distilled and runs no second half of the batch"
            if unet.has_input(GUIDANCE_INPUT)
            else f"at guidance_scale={guidance_scale:g} there is no guidance"
        )
        raise InvalidRequestError(
            f"guidance_interval would be of no effect: {reason}; leave it out"
        )


def _check_deep_cache(manifest: Manifest, unet: EngineSpec) -> None:
    """Whether the loaded UNet has a shallow one beside it."""
    if SHALLOW_UNET not in manifest.components:
        raise InvalidRequestError(
            f"deep_cache needs a shallow UNet, and '{manifest.name}' has none; export it with "
            f"`{manifest.export_command} --variant {DEEP_CACHE}`"
        )
    if all(tensor.name != DEEP_FEATURE for tensor in unet.outputs):
        features = " and ".join(features_of(unet)) or "no deep feature"
        raise InvalidRequestError(
            f"deep_cache is for the plain UNet, and this one has {features}: leave deep_cache out, "
            "or what needs this UNet (after `pipe.adapters.use_variant(None)`)"
        )
