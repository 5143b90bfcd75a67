"""Recipes: the settings that the authors of few-step models publish with them, under a name.

A distilled model draws well with its own sampler, timesteps and guidance only. A recipe holds them
as defaults of a request; what else the request says counts before them. Here are no weights: the
bundle has to be one of such a model, or its LoRA has to be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from kdrt.common.validation import check_mapping, unknown_word
from kdrt.errors import InvalidRequestError
from kdrt.sampling import is_foreign, split_label

if TYPE_CHECKING:
    from kdrt.bundle import Manifest
    from kdrt.request.fields import Request

_OFF = 1.0
"""A guidance scale at which there is no guidance."""

_PREDICTIONS = {
    "epsilon": "the noise (epsilon)",
    "sample": "the image itself (sample)",
    "v_prediction": "velocity (v_prediction)",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one kind of few-step model is sampled.

    Attributes:
        made_for: the model, as its authors call it.
        source: where they say so.
        steps: of the sampler; of ``timesteps``, their number.
        sampler: a key of `kdrt.sampling.SAMPLERS`.
        schedule: a key of `kdrt.sampling.SCHEDULES`; with ``timesteps``, the one that takes their
            place where other ``steps`` are asked for.
        sampler_options: the sampler's own.
        timesteps: a grid that no schedule has.
        guidance_scale: 1 is off; None is the model's own.
        distilled_guidance_scale: the same for a network that takes the scale as an input and
            cannot do without; None is the model's own.
        prediction: what the network was distilled to predict.
    """

    made_for: str
    source: str
    steps: int
    sampler: str
    schedule: str
    sampler_options: Mapping[str, float] | None = None
    timesteps: tuple[float, ...] | None = None
    guidance_scale: float | None = _OFF
    distilled_guidance_scale: float | None = None
    prediction: Literal["epsilon", "sample"] = "epsilon"


def _lightning(steps: int) -> Recipe:
    return Recipe(
        made_for="SDXL-Lightning",
        source="https://huggingface.co/ByteDance/SDXL-Lightning",
        steps=steps,
        sampler="euler",
        schedule="trailing",
        prediction="sample" if steps == 1 else "epsilon",
    )


def _hyper(steps: int, *, guided: bool = False) -> Recipe:
    return Recipe(
        made_for="Hyper-SD, CFG-preserved" if guided else "Hyper-SD",
        source="https://huggingface.co/ByteDance/Hyper-SD",
        steps=steps,
        sampler="ddim",
        schedule="trailing",
        guidance_scale=None if guided else _OFF,
    )


def _hyper_unified(steps: int) -> Recipe:
    return Recipe(
        made_for="Hyper-SD, the unified 1-step LoRA",
        source="https://huggingface.co/ByteDance/Hyper-SD",
        steps=steps,
        sampler="tcd",
        schedule="consistency",
        sampler_options={"eta": 1.0},
    )


def _lcm(steps: int) -> Recipe:
    return Recipe(
        made_for="LCM-LoRA; LCM",
        source="https://huggingface.co/latent-consistency/lcm-lora-sdxl",
        steps=steps,
        sampler="lcm",
        schedule="consistency",
        distilled_guidance_scale=8.0,
    )


def _tcd(steps: int) -> Recipe:
    return Recipe(
        made_for="TCD",
        source="https://huggingface.co/h1t/TCD-SDXL-LoRA",
        steps=steps,
        sampler="tcd",
        schedule="consistency",
        sampler_options={"eta": 0.3},
    )


def _turbo(steps: int) -> Recipe:
    return Recipe(
        made_for="SD Turbo, SDXL Turbo",
        source="https://huggingface.co/stabilityai/sdxl-turbo",
        steps=steps,
        sampler="euler_ancestral",
        schedule="sd_turbo",
    )


def _pcm(steps: int) -> Recipe:
    return Recipe(
        made_for="PCM, the small CFG LoRAs",
        source="https://huggingface.co/wangfuyun/PCM_Weights",
        steps=steps,
        sampler="ddim",
        schedule="trailing",
    )


def _one_step(made_for: str, source: str, timestep: float) -> Recipe:
    """A jump from one timestep, which is not the last."""
    return Recipe(
        made_for=made_for,
        source=source,
        steps=1,
        sampler="lcm",
        schedule="trailing",
        timesteps=(timestep,),
    )


_DMD2 = "https://huggingface.co/tianweiy/DMD2"

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        **{f"lightning-{steps}": _lightning(steps) for steps in (1, 2, 4, 8)},
        **{f"hyper-{steps}": _hyper(steps) for steps in (2, 4, 8)},
        **{f"hyper-cfg-{steps}": _hyper(steps, guided=True) for steps in (8, 12)},
        **{f"hyper-unified-{steps}": _hyper_unified(steps) for steps in (1, 2, 4, 8)},
        "hyper-unet-1": _one_step(
            "Hyper-SD, the 1-step UNet", "https://huggingface.co/ByteDance/Hyper-SD", 800
        ),
        "dmd2-1": _one_step("DMD2, the 1-step UNet", _DMD2, 399),
        "dmd2-4": Recipe(
            made_for="DMD2", source=_DMD2, steps=4, sampler="lcm", schedule="trailing"
        ),
        **{f"lcm-{steps}": _lcm(steps) for steps in (2, 4, 8)},
        **{f"tcd-{steps}": _tcd(steps) for steps in (4, 8)},
        **{f"turbo-{steps}": _turbo(steps) for steps in (1, 2, 4)},
        **{f"pcm-{steps}": _pcm(steps) for steps in (2, 4, 8, 16)},
    }
)
"""By name, which ends in the number of steps."""


def find_recipe(name: object) -> tuple[str, Recipe]:
    """The canonical name and the recipe of a name. Case and punctuation do not matter.

    Raises:
        InvalidRequestError: no recipe is called that.
    """
    if isinstance(name, str):
        for known, recipe in RECIPES.items():
            if folded(known) == folded(name):
                return known, recipe
    raise InvalidRequestError(unknown_word("recipe", name, RECIPES))


def with_recipe(request: Request, settles: Mapping[str, tuple[str, ...]]) -> Request:
    """The same request, with the fields of its recipe that it leaves open.

    The guidance scale is left to :func:`recipe_guidance`: it depends on the model.

    Args:
        request: may have a recipe.
        settles: for every field, those that are void where it is given, such as the recipe's
            timesteps where ``steps`` are.

    Raises:
        InvalidRequestError: no recipe is called that, or options are no mapping.
    """
    if request.get("recipe") is None:
        return request
    name, recipe = find_recipe(request["recipe"])
    given: dict[str, Any] = {key: value for key, value in request.items() if value is not None}
    defaults: dict[str, Any] = {
        "steps": recipe.steps,
        "sampler": recipe.sampler,
        "schedule": recipe.schedule,
        "sampler_options": recipe.sampler_options,
        "timesteps": recipe.timesteps,
    }
    replacing = given.keys() - {"recipe"}
    if same_sampler(given.get("sampler"), recipe.sampler):
        replacing -= {"sampler"}
    for field in replacing:
        for settled in settles[field]:
            defaults.pop(settled, None)
    if defaults.get("sampler_options") and "sampler_options" in given:
        own = check_mapping("sampler_options", given["sampler_options"])
        given["sampler_options"] = {**defaults["sampler_options"], **own}
    return cast("Request", {**request, **defaults, **given, "recipe": name})


def same_sampler(first: object, second: object) -> bool:
    """Whether two names, also labels, are of one sampler with the same options implied."""
    if not isinstance(first, str) or not isinstance(second, str):
        return False
    if is_foreign(first) or is_foreign(second):
        return first == second
    with suppress(InvalidRequestError):
        return split_label(first)[:2] == split_label(second)[:2]
    return False


def recipe_guidance(request: Request, *, distilled: bool) -> float | None:
    """The guidance scale that a request's recipe asks for; None where it has none.

    Args:
        request: complete.
        distilled: the network takes the scale as an input.
    """
    if request["recipe"] is None:
        return None
    _, recipe = find_recipe(request["recipe"])
    return recipe.distilled_guidance_scale if distilled else recipe.guidance_scale


def check_recipe(request: Request, manifest: Manifest) -> None:
    """Refuse a recipe for another kind of network than the model's.

    Args:
        request: complete.
        manifest: says what the model predicts, and from how much noise.

    Raises:
        InvalidRequestError: the model predicts something else, or was trained on noise levels that
            the recipe's timesteps do not mean.
    """
    if request["recipe"] is None:
        return
    name, recipe = find_recipe(request["recipe"])
    facts = manifest.scheduler
    is_for = f"the recipe '{name}' is for models"
    if facts.edm is not None:
        raise InvalidRequestError(
            f"{is_for} with training timesteps, and '{manifest.name}' was trained on a range of "
            "noise levels; give it sampler, schedule and steps one by one"
        )
    if facts.prediction_type != recipe.prediction:
        raise InvalidRequestError(
            f"{is_for} that predict {_PREDICTIONS[recipe.prediction]}, and '{manifest.name}' "
            f"predicts {_PREDICTIONS[facts.prediction_type]}; if its UNet is of that kind, export "
            f"it with --prediction-type {recipe.prediction}"
        )
    if facts.rescale_betas_zero_snr:
        raise InvalidRequestError(
            f"{is_for} whose first timestep holds some of the image, and that of "
            f"'{manifest.name}' is noise alone (rescale_betas_zero_snr); give it sampler, schedule "
            "and steps one by one"
        )


def folded(name: str) -> str:
    """A name without what does not matter in it: case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
