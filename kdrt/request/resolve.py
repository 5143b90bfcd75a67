"""From a request to a job: all its arguments are checked against a model's manifest and every
default is filled in, before anything is computed. A job can only fail for reasons that lie outside
of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from numbers import Real
from typing import Any, cast, get_args

import torch

from kdrt.adapters.ip_adapter import image_scale
from kdrt.bundle import Manifest
from kdrt.bundle.components import DEEP_CACHE, DEEP_FEATURE, SHALLOW_UNET
from kdrt.common.validation import (
    MAX_IMAGES,
    MAX_SIDE,
    check_bool,
    check_callable,
    check_choice,
    check_int,
    check_mapping,
    check_number,
    check_texts,
    excerpt,
    finite_or_none,
    plain_number,
)
from kdrt.denoise.bound_unet import GUIDANCE_INPUT
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.freeu import FREEU_OFF, FreeU, preset
from kdrt.denoise.shortcuts import Shortcuts, check_deep_cache, check_interval
from kdrt.errors import InvalidRequestError
from kdrt.images.output import OutputType
from kdrt.prompt import Conditioning, Weighting, WeightingMode, hidden_layer
from kdrt.prompt.given import checked_embeddings, given_conditioning
from kdrt.prompt.weighting import check_weights
from kdrt.request.grid import check_start, grid_of
from kdrt.request.init_image import read_init_image, with_defaults
from kdrt.request.memory import check_request_fits
from kdrt.request.request import Job, Request, latent_shape
from kdrt.request.seeds import seeds_of
from kdrt.request.size_conditioning import AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE, TimeIds
from kdrt.sampling import AnyPlan, NoiseSchedule, Plan, foreign_plan, is_foreign, make_plan
from kdrt_engines import EngineSpec

_CPU = torch.device("cpu")
_MAX_GUIDANCE = 10_000
_MAX_SCORE = 1000
_MAX_FREEU = 1000
"""Far beyond what is of any use, and well within the range of float32."""


def resolve(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    noise_schedule: NoiseSchedule,
    device: torch.device = _CPU,
) -> Job:
    """Check a request against a model, and fill in its defaults.

    Args:
        request: the arguments.
        manifest: the model's facts and defaults.
        unet: inputs of the loaded UNet, which say what it can be asked for.
        noise_schedule: the model's training table.
        device: where it will be computed.

    Raises:
        InvalidRequestError: any argument is wrong, or there is not enough memory for what they ask
            together; the message says what is allowed.
    """
    request = _with_plain_numbers(request)
    _check_family(request, manifest)
    positive = _positive(request, unet)
    prompts = _prompts(request, manifest, positive)
    negative = _negative(request, unet, positive, len(prompts[0]))
    negatives = None if negative else _negatives(request, manifest, len(prompts[0]))
    weighting = _weighting(request, [*prompts, *(negatives or ())])
    check_choice("output_type", request.output_type, get_args(OutputType))
    per_prompt = check_int("images_per_prompt", request.images_per_prompt, 1, MAX_IMAGES)
    height, width = _size(request, manifest)
    images = len(prompts[0]) * per_prompt
    check_fits = partial(
        check_request_fits,
        manifest.latents,
        images,
        decoded=request.output_type != "latent",
        device=device,
    )
    check_fits(height, width)  # an image to begin with is brought to this size
    request = with_defaults(request, manifest)
    init_image = read_init_image(request, manifest, unet, images)
    if init_image is not None:
        height, width = init_image.height, init_image.width
    if request.latents is not None:
        shape = (images, *latent_shape(manifest, height, width))
        checked_embeddings("latents", request.latents, shape)
    check_start(request)
    check_bool("keep_unmasked", request.keep_unmasked)
    check_number("guidance_rescale", request.guidance_rescale, 1)
    if request.image_filter is not None:
        check_callable("image_filter", request.image_filter)
    guidance_scale = request.guidance_scale
    if guidance_scale is None:
        guidance_scale = manifest.default_guidance_scale
    image_scale(request.ip_adapter_scale)
    planned = _plan(request, manifest, noise_schedule)
    check_fits(height, width, draws=len(planned.slots) if isinstance(planned, Plan) else 0)
    if planned.needs_unconditional and unet.has_input(GUIDANCE_INPUT):
        raise InvalidRequestError(
            f"{planned.sampler} needs results without guidance, and '{manifest.name}' is distilled "
            "to give guided ones only; take a sampler without CFG++"
        )
    guidance_scale = check_number("guidance_scale", guidance_scale, _MAX_GUIDANCE)
    shortcuts = _shortcuts(request, manifest, unet, planned, guidance_scale)
    seeds, noise_seeds = seeds_of(request, images, planned)
    has_ids = unet.has_input("time_ids")
    positive_ids, negative_ids = _time_ids(request, unet, height, width)
    return Job(
        request=request,
        prompts=_each(prompts, per_prompt),
        negatives=None if negatives is None else _each(negatives, per_prompt),
        positive=positive and positive.repeated(per_prompt),
        negative=negative and negative.repeated(per_prompt),
        weighting=weighting,
        height=height,
        width=width,
        seeds=seeds,
        noise_seeds=noise_seeds,
        noise=request.noise,
        noise_options=check_mapping("noise_options", request.noise_options),
        latents=request.latents,
        continues=request.denoising_start is not None,
        plan=planned,
        init_image=init_image,
        guidance_scale=guidance_scale,
        guidance_rescale=request.guidance_rescale,
        shortcuts=shortcuts,
        clip_skip=_clip_skip(request.clip_skip, manifest),
        freeu=_freeu(request.freeu, unet),
        ip_adapter_image=request.ip_adapter_image,
        ip_adapter_image_embeds=request.ip_adapter_image_embeds,
        ip_adapter_scale=request.ip_adapter_scale,
        time_ids=positive_ids if has_ids else None,
        negative_time_ids=negative_ids if has_ids else None,
    )


def _with_plain_numbers(request: Request) -> Request:
    """The same request with Python's own numbers, as they are computed with and written into the
    image's parameters."""
    found: dict[str, Any] = {}
    for name, value in vars(request).items():
        if isinstance(value, Mapping):
            found[name] = {key: plain_number(each) for key, each in value.items()}
        elif isinstance(value, Real):
            found[name] = plain_number(value)
    return replace(request, **found)


def _check_family(request: Request, manifest: Manifest) -> None:
    given = [n for n in ("prompt_2", "negative_prompt_2") if getattr(request, n) is not None]
    if manifest.family == "sdxl":
        if given and len(manifest.text_encoders) == 1:
            raise InvalidRequestError(
                f"'{manifest.name}' has one text encoder, so {', '.join(given)} would be of no "
                "effect; leave it out"
            )
        return
    given += request.sizes.given()
    if given:
        raise InvalidRequestError(
            f"only SDXL models take {', '.join(given)}, and '{manifest.name}' is not one"
        )


def _prompts(
    request: Request, manifest: Manifest, given: Conditioning | None
) -> tuple[tuple[str, ...], ...]:
    if given is not None:
        unknown = ("",) * len(given.encoder_hidden_states)
        return _by_encoder(manifest, unknown, unknown)
    if request.prompt is None:
        raise InvalidRequestError("there is no prompt; give a prompt or prompt_embeds")
    prompts = check_texts("prompt", request.prompt)
    others = prompts
    if request.prompt_2 is not None:
        others = check_texts("prompt_2", request.prompt_2, len(prompts))
    return _by_encoder(manifest, prompts, others)


def _negatives(
    request: Request, manifest: Manifest, count: int
) -> tuple[tuple[str, ...], ...] | None:
    """SDXL's zeros stand for no negative prompt at all; an empty one is encoded like any other."""
    first, second = request.negative_prompt, request.negative_prompt_2
    if first is None and second is None and manifest.zeros_for_empty_negative:
        return None
    negatives = check_texts("negative_prompt", "" if first is None else first, count)
    others = negatives if second is None else check_texts("negative_prompt_2", second, count)
    return _by_encoder(manifest, negatives, others)


def _positive(request: Request, unet: EngineSpec) -> Conditioning | None:
    return given_conditioning(
        {
            "prompt_embeds": request.prompt_embeds,
            "pooled_prompt_embeds": request.pooled_prompt_embeds,
        },
        unet,
        instead_of={"prompt": request.prompt, "prompt_2": request.prompt_2},
    )


def _negative(
    request: Request, unet: EngineSpec, positive: Conditioning | None, count: int
) -> Conditioning | None:
    negative = given_conditioning(
        {
            "negative_prompt_embeds": request.negative_prompt_embeds,
            "negative_pooled_prompt_embeds": request.negative_pooled_prompt_embeds,
        },
        unet,
        instead_of={
            "negative_prompt": request.negative_prompt,
            "negative_prompt_2": request.negative_prompt_2,
        },
        count=count,
    )
    if positive and negative and positive.length != negative.length:
        raise InvalidRequestError(
            f"prompt_embeds are {positive.length} tokens long and negative_prompt_embeds "
            f"{negative.length}; make them equal"
        )
    return negative


def _weighting(request: Request, columns: list[tuple[str, ...]]) -> Weighting:
    check_choice("prompt_weighting", request.prompt_weighting, get_args(WeightingMode))
    backtrack = check_int("comma_backtrack", request.comma_backtrack, 0)
    if request.prompt_weighting != "none":
        for prompt in dict.fromkeys(chain.from_iterable(columns)):
            check_weights("a prompt", prompt)
    return Weighting(request.prompt_weighting, backtrack)


def _by_encoder(
    manifest: Manifest, first: tuple[str, ...], others: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    return (first, *(others for _ in manifest.text_encoders[1:]))


def _each(columns: tuple[tuple[str, ...], ...], times: int) -> tuple[tuple[str, ...], ...]:
    """Every prompt ``times`` times in a row: p0, p0, p1, p1."""
    return tuple(tuple(text for text in column for _ in range(times)) for column in columns)


def _size(request: Request, manifest: Manifest) -> tuple[int, int]:
    facts = manifest.latents
    return (
        _side("height", request.height, facts.default_height, facts.scale),
        _side("width", request.width, facts.default_width, facts.scale),
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


def _plan(request: Request, manifest: Manifest, noise_schedule: NoiseSchedule) -> AnyPlan:
    sigmas = grid_of(request, manifest, noise_schedule)
    options = check_mapping("sampler_options", request.sampler_options)
    if is_foreign(request.sampler):
        return foreign_plan(request.sampler, sigmas, **options)
    return make_plan(cast(str, request.sampler), sigmas, **options)


def _shortcuts(
    request: Request,
    manifest: Manifest,
    unet: EngineSpec,
    planned: AnyPlan,
    guidance_scale: float,
) -> Shortcuts:
    limits = cached = None
    if request.guidance_interval is not None:
        limits = check_interval("guidance_interval", request.guidance_interval)
        _check_guided(manifest, unet, planned, guidance_scale)
    if request.deep_cache is not None:
        cached = check_deep_cache("deep_cache", request.deep_cache)
        _check_deep_cache(manifest, unet)
    return Shortcuts(limits, cached)


def _check_guided(
    manifest: Manifest, unet: EngineSpec, planned: AnyPlan, guidance_scale: float
) -> None:
    """Whether an interval of guidance means anything."""
    if planned.needs_unconditional:
        raise InvalidRequestError(
            f"{planned.sampler} needs results without guidance at every noise level; take a "
            "sampler without CFG++, or leave guidance_interval out"
        )
    if not is_doubled(unet, guidance_scale):
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
        raise InvalidRequestError(
            "deep_cache is for the plain UNet, and an IP-Adapter's is in use; leave out deep_cache "
            "or the image (after `pipe.adapters.use_variant(None)`)"
        )


def _clip_skip(value: int | None, manifest: Manifest) -> int:
    clip_skip = 0 if value is None else check_int("clip_skip", value, 0)
    for facts in manifest.text_encoders:
        hidden_layer(facts, clip_skip)
    return clip_skip


def _time_ids(
    request: Request, unet: EngineSpec, height: int, width: int
) -> tuple[TimeIds, TimeIds]:
    scores = request.aesthetic_score, request.negative_aesthetic_score
    if unet.has_input("time_ids") and unet.input("time_ids").shape[1] == 5:
        positive = AESTHETIC_SCORE if scores[0] is None else scores[0]
        negative = NEGATIVE_AESTHETIC_SCORE if scores[1] is None else scores[1]
        return request.sizes.refiner_time_ids(
            height,
            width,
            check_number("aesthetic_score", positive, _MAX_SCORE),
            check_number("negative_aesthetic_score", negative, _MAX_SCORE),
        )
    if any(score is not None for score in scores):
        raise InvalidRequestError("only SDXL's refiner takes aesthetic scores, and this is not one")
    return request.sizes.time_ids(height, width)


def _freeu(value: FreeU | str | None, unet: EngineSpec) -> FreeU:
    if value is None:
        return FREEU_OFF
    if not unet.has_input("freeu"):
        raise InvalidRequestError("this bundle has no FreeU in its UNet; export the model again")
    if isinstance(value, str):
        return preset(value)
    numbers = value if isinstance(value, Sequence) and len(value) == 4 else ()
    factors = [n for n in map(finite_or_none, numbers) if n is not None and abs(n) <= _MAX_FREEU]
    if len(factors) != 4:
        raise InvalidRequestError(
            f"freeu must be four finite numbers (b1, b2, s1, s2) of at most {_MAX_FREEU}, not "
            f"{excerpt(value)}"
        )
    b1, b2, s1, s2 = factors
    return b1, b2, s1, s2
