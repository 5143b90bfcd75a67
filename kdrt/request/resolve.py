"""From a request to a job: all its fields are checked against a model's manifest and every default
is filled in, before anything is computed. A job can only fail for reasons that lie outside of the
request.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast, get_args

import torch

from kdrt.bundle import Manifest
from kdrt.common.literals import OutputType
from kdrt.common.validation import (
    MAX_SIDE,
    check_callable,
    check_choice,
    check_int,
    check_mapping,
    finite_or_none,
)
from kdrt.denoise.bound_unet import GUIDANCE_INPUT, is_inpainting
from kdrt.denoise.freeu import FREEU_OFF, FreeU, check_freeu
from kdrt.denoise.shortcuts import NO_SHORTCUTS
from kdrt.errors import InvalidRequestError
from kdrt.images.init_image import InitImage
from kdrt.images.upscaling import find_upscaler
from kdrt.prompt.given import checked_embeddings
from kdrt.request.complete import complete
from kdrt.request.controls import control_texts, given_controls, resolve_controls
from kdrt.request.fields import Request
from kdrt.request.grid import check_start, grid_of, is_custom, with_own_grid
from kdrt.request.guidance_method import guidance_method_of
from kdrt.request.hires import check_hires_fields, second_request
from kdrt.request.images_to_make import ImagesToMake
from kdrt.request.init_image import check_mask_fields, read_init_image, with_defaults
from kdrt.request.job import Job, SecondPass, latent_shape
from kdrt.request.memory import check_request_fits
from kdrt.request.perturbed_attention import perturbed_attention_of
from kdrt.request.prompts import resolve_prompts
from kdrt.request.recipes import check_recipe, recipe_guidance
from kdrt.request.regions import regions_of
from kdrt.request.seeds import seeds_of
from kdrt.request.shortcuts import shortcuts_of
from kdrt.request.size_conditioning import (
    AESTHETIC_SCORE,
    NEGATIVE_AESTHETIC_SCORE,
    TimeIds,
    given_sizes,
    refiner_time_ids,
    time_ids,
)
from kdrt.request.snapshot import JobSnapshot, plain
from kdrt.request.unet_features import unet_features
from kdrt.sampling import AnyPlan, NoiseSchedule, Plan, foreign_plan, is_foreign, make_plan
from kdrt_engines import EngineSpec

if TYPE_CHECKING:
    from kdrt.adapters.image_prompt import ImageRequest

_CPU = torch.device("cpu")


def resolve(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    noise_schedule: NoiseSchedule,
    device: torch.device = _CPU,
    output_type: OutputType = "pil",
) -> Job:
    """Check a request against a model, and fill in its defaults.

    Args:
        request: some of the fields.
        manifest: the model's facts and defaults.
        unet: inputs of the UNet that has the features it needs; they say what else it can be asked
            for.
        noise_schedule: the model's training table.
        device: where it will be computed.
        output_type: the form of the result.

    Raises:
        InvalidRequestError: any field is wrong, or there is not enough memory for what they ask
            together; the message says what is allowed.
    """
    request = complete(request)
    check_hires_fields(request)
    if request["hires_scale"] is None:
        return _resolve_pass(request, manifest, unet, noise_schedule, device, output_type)
    request = with_own_grid(request)
    first = _resolve_pass(request, manifest, unet, noise_schedule, device, output_type)
    larger = second_request(request, first, manifest)
    second = _resolve_pass(larger, manifest, unet, noise_schedule, device, output_type)
    upscaler = find_upscaler(request["hires_upscaler"], manifest.upscalers)
    model = manifest.upscalers.get(upscaler)
    return replace(first, second=SecondPass(job=second, upscaler=upscaler, model=model))


def _resolve_pass(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    noise_schedule: NoiseSchedule,
    device: torch.device,
    output_type: OutputType,
) -> Job:
    """The job of a complete request, of one pass; see :func:`resolve`."""
    check_choice("output_type", output_type, get_args(OutputType))
    if request["image_filter"] is not None:
        check_callable("image_filter", request["image_filter"])
    check_recipe(request, manifest)
    _check_sizes(request, manifest)
    check_mask_fields(request, output_type)
    prompts = resolve_prompts(request, manifest, unet)
    images = len(prompts.prompts[0]) * request["images_per_prompt"]
    height, width = _size(request, manifest)
    check_fits = partial(
        check_request_fits,
        manifest.latents,
        images,
        controls=len(given_controls(request["control"])),
        decoded=output_type != "latent",
        device=device,
    )
    check_fits(height, width)  # an image to begin with is brought to this size
    if request["image"] is not None:
        request = with_defaults(request, manifest)
    request = with_own_grid(request)
    init_image = _init_image(request, manifest, unet, images)
    if init_image is not None:
        height, width = init_image.height, init_image.width
        if init_image.part is not None:
            check_fits(*init_image.part.pixels.shape[2:])
    if request["latents"] is not None:
        shape = (images, *latent_shape(manifest, height, width))
        checked_embeddings("latents", request["latents"], shape)
    check_start(request)
    plan = _plan(request, manifest, noise_schedule)
    check_fits(height, width, draws=len(plan.slots) if isinstance(plan, Plan) else 0)
    guidance_scale = _guidance_scale(request, manifest, unet, plan)
    seeds, noise_seeds = seeds_of(request, images, plan)
    part = None if init_image is None else init_image.part
    to_make = ImagesToMake(images, height, width, part)
    regions = regions_of(request, manifest, to_make)
    if regions is not None:
        prompts = replace(prompts, region_prompts=regions.prompts)
    positive_ids, negative_ids = _time_ids(request, unet, height, width)
    freeu = _freeu(request["freeu"], unet)
    controls = resolve_controls(request, manifest, plan, to_make)
    perturbed_attention = perturbed_attention_of(request, manifest, unet)
    shortcuts = NO_SHORTCUTS
    if request["guidance_interval"] is not None or request["deep_cache"] is not None:
        shortcuts = shortcuts_of(request, manifest, unet, plan, guidance_scale)
    prompts = prompts.repeated(request["images_per_prompt"])
    snapshot = JobSnapshot(
        manifest=manifest,
        request=plain(request),
        prompts=prompts.prompts,
        negatives=prompts.negatives,
        clip_skip=prompts.clip_skip,
        seeds=seeds,
        noise_seeds=noise_seeds,
        height=height,
        width=width,
        steps=plan.steps if is_custom(request) else request["steps"],
        guidance_scale=guidance_scale,
        freeu=freeu,
        own_sampler=plan.sampler if callable(request["sampler"]) else None,
        controls=control_texts(request, manifest),
        regions=() if regions is None else tuple(zip(regions.prompts, regions.counts, strict=True)),
    )
    return Job(
        **vars(prompts),
        height=height,
        width=width,
        seeds=seeds,
        noise_seeds=noise_seeds,
        noise=request["noise"],
        noise_options=check_mapping("noise_options", request["noise_options"]),
        latents=request["latents"],
        continues=request["denoising_start"] is not None,
        plan=plan,
        init_image=init_image,
        guidance_scale=guidance_scale,
        guidance_rescale=request["guidance_rescale"],
        guidance_method=guidance_method_of(request, manifest, unet, plan, guidance_scale),
        perturbed_attention=perturbed_attention,
        region_weights=regions and regions.weights,
        shortcuts=shortcuts,
        freeu=freeu,
        controls=controls,
        image_prompt=_image_prompt(request, manifest, to_make),
        time_ids=positive_ids,
        negative_time_ids=negative_ids,
        output_type=output_type,
        image_filter=request["image_filter"],
        unet_features=unet_features(request),
        snapshot=snapshot,
    )


def _image_prompt(
    request: Request, manifest: Manifest, to_make: ImagesToMake
) -> ImageRequest | None:
    if to_make.part is not None and request["ip_adapter_masks"] is not None:
        raise InvalidRequestError(
            "ip_adapter_masks are of whole images, and inpaint_padding makes a part of one: leave "
            "out one of them"
        )
    images, embeds = request["ip_adapter_image"], request["ip_adapter_image_embeds"]
    scale = request["ip_adapter_scale"]
    if images is None and embeds is None and finite_or_none(scale) is not None:
        return None
    from kdrt.adapters.image_prompt import read_image_request

    return read_image_request(
        images,
        embeds,
        scale,
        request["ip_adapter_masks"],
        manifest=manifest,
        prompts=to_make.count,
        height=to_make.height,
        width=to_make.width,
    )


def _size(request: Request, manifest: Manifest) -> tuple[int, int]:
    facts = manifest.latents
    return (
        _side("height", request["height"], facts.default_height, facts.scale),
        _side("width", request["width"], facts.default_width, facts.scale),
    )


def _side(name: str, value: int | None, default: int, scale: int) -> int:
    if value is None:
        return default
    side = check_int(name, value, scale, MAX_SIDE)
    if side % scale:
        below = side // scale * scale
        raise InvalidRequestError(
            f"{name} must be a multiple of {scale}, and {side} is not: "
            f"use {below} or {below + scale}"
        )
    return side


def _init_image(
    request: Request, manifest: Manifest, unet: EngineSpec, images: int
) -> InitImage | None:
    given = request["image"] is not None or request["mask_image"] is not None
    if not given and not is_inpainting(unet):
        return None
    return read_init_image(request, manifest, unet, images)


def _plan(request: Request, manifest: Manifest, noise_schedule: NoiseSchedule) -> AnyPlan:
    sigmas = grid_of(request, manifest, noise_schedule)
    sampler = request["sampler"]
    options = check_mapping("sampler_options", request["sampler_options"])
    if is_foreign(sampler):
        return foreign_plan(sampler, sigmas, **options)
    return make_plan(cast(str, sampler), sigmas, noise_schedule, **options)


def _guidance_scale(request: Request, manifest: Manifest, unet: EngineSpec, plan: AnyPlan) -> float:
    if plan.needs_unconditional and unet.has_input(GUIDANCE_INPUT):
        raise InvalidRequestError(
            f"{plan.sampler} needs results without guidance, and '{manifest.name}' is distilled "
            "to give guided ones only; take a sampler without CFG++"
        )
    scale = request["guidance_scale"]
    if scale is None:
        scale = recipe_guidance(request, distilled=unet.has_input(GUIDANCE_INPUT))
    return manifest.default_guidance_scale if scale is None else scale


def _check_sizes(request: Request, manifest: Manifest) -> None:
    given = ", ".join(given_sizes(request))
    if given and manifest.family != "sdxl":
        raise InvalidRequestError(
            f"only SDXL models take {given}, and '{manifest.name}' is not one"
        )


def _time_ids(
    request: Request, unet: EngineSpec, height: int, width: int
) -> tuple[TimeIds | None, TimeIds | None]:
    scores = request["aesthetic_score"], request["negative_aesthetic_score"]
    if unet.has_input("time_ids") and unet.input("time_ids").shape[1] == 5:
        positive = AESTHETIC_SCORE if scores[0] is None else scores[0]
        negative = NEGATIVE_AESTHETIC_SCORE if scores[1] is None else scores[1]
        return refiner_time_ids(request, height, width, positive, negative)
    if any(score is not None for score in scores):
        raise InvalidRequestError("only SDXL's refiner takes aesthetic scores, and this is not one")
    return time_ids(request, height, width) if unet.has_input("time_ids") else (None, None)


def _freeu(value: object, unet: EngineSpec) -> FreeU:
    if value is None:
        return FREEU_OFF
    if not unet.has_input("freeu"):
        raise InvalidRequestError("this bundle has no FreeU in its UNet; export the model again")
    return check_freeu("freeu", value)
