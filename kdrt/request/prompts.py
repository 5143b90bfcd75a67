"""The prompts of a request: checked, for every text encoder."""

from __future__ import annotations

from itertools import chain

from kdrt.bundle import Manifest
from kdrt.common.validation import check_int, check_texts
from kdrt.errors import InvalidRequestError
from kdrt.prompt import Conditioning, Weighting, hidden_layer
from kdrt.prompt.given import given_conditioning
from kdrt.prompt.weighting import check_weights
from kdrt.request.fields import Request
from kdrt.request.job import PromptJob
from kdrt.request.snapshot import Columns
from kdrt_engines import EngineSpec


def resolve_prompts(request: Request, manifest: Manifest, unet: EngineSpec) -> PromptJob:
    """The part of a complete request that text encoders work on, once for each prompt.

    Raises:
        InvalidRequestError: a prompt is missing, given twice, or not of use to this model.
    """
    _check_second_prompts(request, manifest)
    positive = _positive(request, unet)
    prompts = _prompts(request, manifest, positive)
    negative = _negative(request, unet, positive, len(prompts[0]))
    negatives = None if negative else _negatives(request, manifest, len(prompts[0]))
    return PromptJob(
        prompts=prompts,
        negatives=negatives,
        positive=positive,
        negative=negative,
        weighting=_weighting(request, [*prompts, *(negatives or ())]),
        clip_skip=_clip_skip(request["clip_skip"], manifest),
    )


def _check_second_prompts(request: Request, manifest: Manifest) -> None:
    seconds = {name: request.get(name) for name in ("prompt_2", "negative_prompt_2")}
    given = ", ".join(name for name, value in seconds.items() if value is not None)
    if given and manifest.family != "sdxl":
        raise InvalidRequestError(
            f"only SDXL models take {given}, and '{manifest.name}' is not one"
        )
    if given and len(manifest.text_encoders) == 1:
        raise InvalidRequestError(
            f"'{manifest.name}' has one text encoder, so {given} would be of no effect; leave it "
            "out"
        )


def _positive(request: Request, unet: EngineSpec) -> Conditioning | None:
    given = {name: request.get(name) for name in ("prompt_embeds", "pooled_prompt_embeds")}
    if all(value is None for value in given.values()):
        return None
    return given_conditioning(
        given,
        unet,
        instead_of={"prompt": request["prompt"], "prompt_2": request["prompt_2"]},
    )


def _prompts(request: Request, manifest: Manifest, given: Conditioning | None) -> Columns:
    if given is not None:
        unknown = ("",) * len(given.encoder_hidden_states)
        return _by_encoder(manifest, unknown, unknown)
    if request["prompt"] is None:
        raise InvalidRequestError("there is no prompt; give a prompt or prompt_embeds")
    prompts = check_texts("prompt", request["prompt"])
    others = prompts
    if request["prompt_2"] is not None:
        others = check_texts("prompt_2", request["prompt_2"], len(prompts))
    return _by_encoder(manifest, prompts, others)


def _negative(
    request: Request, unet: EngineSpec, positive: Conditioning | None, count: int
) -> Conditioning | None:
    names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    given = {name: request.get(name) for name in names}
    if all(value is None for value in given.values()):
        return None
    negative = given_conditioning(
        given,
        unet,
        instead_of={
            "negative_prompt": request["negative_prompt"],
            "negative_prompt_2": request["negative_prompt_2"],
        },
        count=count,
    )
    if positive and negative and positive.length != negative.length:
        raise InvalidRequestError(
            f"prompt_embeds are {positive.length} tokens long and negative_prompt_embeds "
            f"{negative.length}; make them equal"
        )
    return negative


def _negatives(request: Request, manifest: Manifest, count: int) -> Columns | None:
    """SDXL's zeros stand for no negative prompt at all; an empty one is encoded like any other."""
    first, second = request["negative_prompt"], request["negative_prompt_2"]
    if first is None and second is None and manifest.zeros_for_empty_negative:
        return None
    negatives = check_texts("negative_prompt", "" if first is None else first, count)
    others = negatives if second is None else check_texts("negative_prompt_2", second, count)
    return _by_encoder(manifest, negatives, others)


def _weighting(request: Request, columns: list[tuple[str, ...]]) -> Weighting:
    if request["prompt_weighting"] != "none":
        for prompt in dict.fromkeys(chain.from_iterable(columns)):
            check_weights("a prompt", prompt)
    return Weighting(request["prompt_weighting"], request["comma_backtrack"])


def _by_encoder(manifest: Manifest, first: tuple[str, ...], others: tuple[str, ...]) -> Columns:
    return (first, *(others for _ in manifest.text_encoders[1:]))


def _clip_skip(value: int | None, manifest: Manifest) -> int:
    clip_skip = 0 if value is None else check_int("clip_skip", value, 0)
    for facts in manifest.text_encoders:
        hidden_layer(facts, clip_skip)
    return clip_skip
