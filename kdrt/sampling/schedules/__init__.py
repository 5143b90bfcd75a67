"""Noise levels: the table a checkpoint was trained on, and the grids sampling walks down.

σ is the standard deviation of the noise in ``x = x₀ + σ·ξ`` (variance exploding, the scaling of
Karras et al. 2022). Everything here is float64 on the host: a grid is a few dozen numbers, made
once per request, and never needs a device. Here are the registry and `sigmas_for`, which checks
the request.

Its files:

    training    the table of noise levels
    continuous  schedules that are formulas
    discrete    schedules that choose training timesteps
    published   schedules that were published as numbers
    partial     part of a grid
    quantile    quantiles of the beta distribution
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from kdrt.common.validation import (
    MAX_STEPS,
    check_int,
    excerpt,
    finite_or_none,
    plain_number,
    unknown_word,
)
from kdrt.errors import InvalidRequestError
from kdrt.sampling.schedules import continuous, discrete, published
from kdrt.sampling.schedules.discrete import TIMESTEP_SPACINGS
from kdrt.sampling.schedules.partial import partial_grid
from kdrt.sampling.schedules.training import (
    ContinuousSchedule,
    Float64Array,
    NoiseSchedule,
)

__all__ = [
    "SCHEDULES",
    "ContinuousSchedule",
    "NoiseSchedule",
    "ScheduleInfo",
    "find_schedule",
    "partial_grid",
    "sigmas_for",
]


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """Facts about a schedule.

    Attributes:
        name: canonical name.
        label: its name in AUTOMATIC1111's web UI or Forge; a name in their style if they have
            none.
        grid: from a number of steps, the training table and keyword options to the noise levels;
            does not check its options.
        meaning: one line on how it spaces the noise levels.
        covers: where its noise levels come from: ``any range`` (sigma_min and sigma_max can be
            set), ``training`` (the timesteps of the table) or ``own``.
        aliases: further names, such as ComfyUI's.
    """

    name: str
    label: str
    grid: Callable[..., Float64Array]
    meaning: str
    covers: str
    aliases: tuple[str, ...] = ()

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that `sigmas_for` accepts for this schedule, with their defaults."""
        parameters = inspect.signature(self.grid).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {**own, "discard_penultimate": False}


_ANY, _TRAINING, _OWN = "any range", "training", "own"
_ALL = (
    ScheduleInfo(
        *("karras", "Karras", continuous.karras),
        *("even in the 7th root of sigma: more steps where the noise is low", _ANY),
    ),
    ScheduleInfo(
        *("exponential", "Exponential", continuous.exponential),
        *("even in the logarithm of sigma", _ANY),
    ),
    ScheduleInfo(
        *("polyexponential", "Polyexponential", continuous.polyexponential),
        *("like exponential, bent by an exponent (1 by default: the same)", _ANY),
    ),
    ScheduleInfo(
        *("vp", "VP", continuous.vp),
        *("the continuous variance-preserving process, from 152 to 0.01", _OWN),
    ),
    ScheduleInfo(
        *("scheduler", "Scheduler", discrete.scheduler),
        *("the checkpoint's own grid: linspace, leading or trailing", _TRAINING),
        ("default",),
    ),
    ScheduleInfo(
        *("linspace", "Linspace", discrete.linspace),
        *("even training timesteps with both ends, as diffusers", _TRAINING),
    ),
    ScheduleInfo(
        *("leading", "Leading", discrete.leading),
        *("multiples of a whole stride, plus an offset: starts below the top", _TRAINING),
    ),
    ScheduleInfo(
        *("trailing", "Trailing", discrete.trailing),
        *("counted down from the top in even strides", _TRAINING),
        ("turbo",),
    ),
    ScheduleInfo(
        *("normal", "Normal", discrete.normal),
        *("even training timesteps with both ends", _TRAINING),
        ("uniform",),
    ),
    ScheduleInfo(
        *("sgm_uniform", "SGM Uniform", discrete.sgm_uniform),
        *("even training timesteps, the lowest replaced by 0", _TRAINING),
    ),
    ScheduleInfo(
        *("simple", "Simple", discrete.simple),
        *("entries of the training table in even strides from the top", _TRAINING),
    ),
    ScheduleInfo(
        *("ddim_uniform", "DDIM", discrete.ddim_uniform),
        *("entries in whole strides from the bottom; may take more steps", _TRAINING),
    ),
    ScheduleInfo(
        *("beta_timestep", "Beta Timestep", discrete.beta_timestep),
        *("beta quantiles of the timestep (the paper; ComfyUI's beta)", _TRAINING),
        ("beta",),
    ),
    ScheduleInfo(
        *("beta_sigma", "Beta", continuous.beta_sigma),
        *("beta quantiles of sigma itself (A1111's and diffusers' beta)", _ANY),
    ),
    ScheduleInfo(
        *("linear_quadratic", "Linear Quadratic", continuous.linear_quadratic),
        *("linear, then a parabola: high noise for long (flow models)", _ANY),
    ),
    ScheduleInfo(
        *("kl_optimal_comfyui", "KL Optimal ComfyUI", continuous.kl_optimal_comfyui),
        *("even in the arctangent of sigma, then 0", _ANY),
        ("kl_optimal",),
    ),
    ScheduleInfo(
        *("kl_optimal_a1111", "KL Optimal", continuous.kl_optimal_a1111),
        *("even in the arctangent of sigma, ending at sigma_min", _ANY),
    ),
    ScheduleInfo(
        *("laplace", "Laplace", continuous.laplace),
        *("quantiles of a Laplace distribution: most steps around sigma 1", _ANY),
    ),
    ScheduleInfo(
        *("sd_turbo", "SD Turbo", discrete.sd_turbo),
        *("the first of ten fixed levels, for SD Turbo; at most 10 steps", _TRAINING),
        ("turbo", "SDTurboScheduler"),
    ),
    ScheduleInfo(
        *("consistency", "Consistency", discrete.consistency),
        *("spread over 50 fixed levels, for LCM and TCD; at most 50 steps", _TRAINING),
    ),
    ScheduleInfo(
        *("align_your_steps", "Align Your Steps", published.align_your_steps),
        *("a published table for ten steps of SD or SDXL", _OWN),
        ("ays", "AlignYourStepsScheduler"),
    ),
    ScheduleInfo(
        *("gits", "GITS", published.gits),
        *("published tables for each of 2 to 20 steps of SD", _OWN),
        ("GITSScheduler",),
    ),
    ScheduleInfo(
        *("gits_forge", "Align Your Steps GITS", published.gits_forge),
        *("a table for ten steps of SD or SDXL, as Forge has it", _OWN),
    ),
)
SCHEDULES: Mapping[str, ScheduleInfo] = MappingProxyType({info.name: info for info in _ALL})


def find_schedule(name: str) -> ScheduleInfo:
    """The schedule of that name: kdrt's name, ComfyUI's name or a web UI's label.

    Case, spaces, hyphens and underscores do not matter.

    Raises:
        InvalidRequestError: no schedule is called that, or two programs use the name for different
            ones.
    """
    if isinstance(name, str):
        if name in SCHEDULES:
            return SCHEDULES[name]
        found = [info for info in _ALL if _key(name) in map(_key, _names(info))]
        if len(found) == 1:
            return found[0]
        if found:
            one, other = (f"{info.name} ({info.meaning})" for info in found)
            raise InvalidRequestError(
                f"the schedule {name!r} is not the same everywhere; choose {one} or {other}"
            )
    raise InvalidRequestError(unknown_word("schedule", name, SCHEDULES))


def sigmas_for(
    schedule: str,
    steps: int,
    noise_schedule: NoiseSchedule,
    *,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
    discard_penultimate: bool = False,
    **options: Any,
) -> Float64Array:
    """The descending noise levels of a run of ``steps`` steps: float64 ``[steps + 1]``, the last
    one 0.

    Some schedules differ from that: ``ddim_uniform`` may have more levels, ``beta_timestep`` and
    ``laplace`` have fewer where neighbours coincide, and ``kl_optimal_a1111`` ends at σmin.

    Args:
        schedule: any name that `find_schedule` knows.
        steps: number of steps; for schedules of training timesteps, at most the number of these.
        noise_schedule: the training table; gives the default range.
        timestep_spacing: for ``scheduler``, the spacing in the checkpoint's scheduler file:
            ``linspace``, ``leading`` or ``trailing``.
        steps_offset: the offset in that file, for ``leading``.
        discard_penultimate: plan one more step and leave out the last level before the end, as web
            UIs do for samplers that evaluate the model between two levels.
        options: those of the schedule, see `ScheduleInfo.options`.

    Raises:
        InvalidRequestError: a name or an option is unknown, the number of steps is impossible, an
            option is out of range, or the options make a grid that does not descend.
    """
    info = find_schedule(schedule)
    steps = check_int("steps", steps, 1, MAX_STEPS)
    options = {name: plain_number(value) for name, value in options.items()}
    steps_offset, discard_penultimate = (
        plain_number(steps_offset),
        plain_number(discard_penultimate),
    )
    facts = {"timestep_spacing": timestep_spacing, "steps_offset": steps_offset}
    check_options(info, options)
    for name, value in {**facts, **options, "discard_penultimate": discard_penultimate}.items():
        allowed, is_valid = _RULES[name]
        if not is_valid(value):
            raise InvalidRequestError(f"{name} must be {allowed}, not {excerpt(value)}")
    accepted = info.options
    options |= {name: value for name, value in facts.items() if name in accepted}
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused below
            count = steps + 1 if discard_penultimate else steps
            sigmas = info.grid(count, noise_schedule, **options)
    except ArithmeticError:
        sigmas = np.array([np.nan])
    if discard_penultimate:
        sigmas = np.delete(sigmas, -2)
    if not (np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all() and sigmas[-1] >= 0):
        raise InvalidRequestError(
            f"the {info.name} schedule of {steps} steps does not descend with these options; "
            "leave them nearer to their defaults"
        )
    return sigmas


def check_options(info: ScheduleInfo, options: Mapping[str, Any]) -> None:
    """Refuse options that a schedule does not have.

    Raises:
        InvalidRequestError: an unknown option; the message lists those there are.
    """
    accepted = info.options
    for name in options:
        if name not in accepted:
            raise InvalidRequestError(
                f"the {info.name} schedule has no option {name!r}: it accepts {', '.join(accepted)}"
            )


def _names(info: ScheduleInfo) -> tuple[str, ...]:
    return (info.name, info.label, *info.aliases)


def _key(name: str) -> str:
    """What is left of a name when its spelling is taken away: "SGM Uniform" → "sgmuniform"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_number(value: object) -> bool:
    return finite_or_none(value) is not None


_Rule = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Rule = ("a finite number above 0", lambda v: _is_number(v) and v > 0)
_SHAPE: _Rule = ("from 0.01 to 100", lambda v: _is_number(v) and 0.01 <= v <= 100)
_SIGMA: _Rule = ("a finite number", lambda v: v is None or _is_number(v))
_FRACTION: _Rule = ("above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1)
_SWITCH: _Rule = ("True or False", lambda v: isinstance(v, bool))
_RULES: Mapping[str, _Rule] = {
    "rho": _POSITIVE,
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "beta_d": _POSITIVE,
    "beta_min": _POSITIVE,
    "eps_s": _FRACTION,
    "alpha": _SHAPE,
    "beta": _SHAPE,
    "mu": ("a finite number", _is_number),
    "threshold_noise": _FRACTION,
    "linear_steps": (
        f"a whole number from 1 to {MAX_STEPS}",
        lambda v: v is None or (type(v) is int and 1 <= v <= MAX_STEPS),
    ),
    "original_steps": (
        f"a whole number from 1 to {MAX_STEPS}",
        lambda v: type(v) is int and 1 <= v <= MAX_STEPS,
    ),
    "model": (" or ".join(published.MODELS), lambda v: v in published.MODELS),
    "end_rule": (" or ".join(published.END_RULES), lambda v: v in published.END_RULES),
    "timestep_spacing": (
        f"one of {', '.join(TIMESTEP_SPACINGS)}",
        lambda v: v in TIMESTEP_SPACINGS,
    ),
    "steps_offset": ("a whole number below a million", lambda v: type(v) is int and abs(v) < 10**6),
    "exact_diffusers": _SWITCH,
    "final_zero": _SWITCH,
    "discard_penultimate": _SWITCH,
}
