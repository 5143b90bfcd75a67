"""The noise levels a request asks for: a schedule or a grid of its own, whole or in part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

from kdrt.bundle import Manifest, SchedulerFacts
from kdrt.common.validation import MAX_STEPS, check_int, check_mapping
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt.request.recipes import find_recipe
from kdrt.sampling import NoiseSchedule, find_schedule, partial_grid, sigmas_for
from kdrt.sampling.schedules import ContinuousSchedule, check_options

_ROUNDING = 1e-6
"""Timesteps may be float32 numbers: by how much of their range they may leave it."""


def training_table(facts: SchedulerFacts) -> NoiseSchedule:
    """The noise levels that a model was trained on; of a continuous range a table.

    Raises:
        InvalidRequestError: the facts make no table, or one that ends in noise alone for a model
            that predicts noise.
    """
    if facts.edm is not None:
        return ContinuousSchedule.from_range(
            facts.edm.sigma_min, facts.edm.sigma_max, facts.num_train_timesteps
        )
    if facts.rescale_betas_zero_snr and facts.prediction_type == "epsilon":
        raise InvalidRequestError(
            "this bundle has rescale_betas_zero_snr, so its first timestep is noise alone, and a "
            "model that predicts noise (epsilon) cannot begin there; export the model with "
            "rescale_betas_zero_snr set to false in its scheduler_config.json"
        )
    return NoiseSchedule.from_betas(
        facts.beta_start,
        facts.beta_end,
        facts.beta_schedule,
        facts.num_train_timesteps,
        facts.trained_betas,
        rescale_zero_snr=facts.rescale_betas_zero_snr,
    )


def grid_of(request: Request, manifest: Manifest, noise_schedule: NoiseSchedule) -> list[float]:
    """The descending σ of a request.

    Raises:
        InvalidRequestError: arguments that exclude each other, are out of range, or leave no step.
    """
    sigmas: list[float] = partial_grid(
        _whole_grid(request, manifest, noise_schedule),
        noise_schedule,
        strength=request["strength"],
        denoising_start=request["denoising_start"],
        denoising_end=request["denoising_end"],
    ).tolist()
    return sigmas


def with_own_grid(request: Request) -> Request:
    """The same request, its ``sigmas`` and ``timesteps`` as lists: an iterator can be read once.

    Raises:
        InvalidRequestError: they are no descending numbers, or too many.
    """
    if request["sigmas"] is not None:
        request = {**request, "sigmas": _descending("sigmas", request["sigmas"])}
    if request["timesteps"] is not None:
        request = {**request, "timesteps": _descending("timesteps", request["timesteps"])}
    return request


def is_custom(request: Request) -> bool:
    """Whether a request brings a grid of its own, so that ``steps`` and ``schedule`` do not
    count."""
    return request["sigmas"] is not None or request["timesteps"] is not None


def strength_of(run: int, steps: int) -> float:
    """The strength that runs exactly so many of the steps of a schedule: 1 to ``steps``."""
    strength = run / steps
    return strength if int(strength * steps) == run else math.nextafter(strength, 1.0)


def check_start(request: Request) -> None:
    """Refuse a start in the middle of the noise without anything to start from.

    Raises:
        InvalidRequestError: ``strength`` in text to image, or ``denoising_start`` without latents.
    """
    if request["strength"] is not None and request["image"] is None:
        raise InvalidRequestError(
            "strength says how much of an image to redo, and there is none: text to image always "
            "begins with noise alone"
        )
    if request["denoising_start"] is not None and request["latents"] is None:
        raise InvalidRequestError(
            "denoising_start goes on with the latents of another run: give them as latents, made "
            "with the same denoising_end and output_type='latent'"
        )


def _whole_grid(request: Request, manifest: Manifest, noise_schedule: NoiseSchedule) -> list[float]:
    if request["sigmas"] is not None and request["timesteps"] is not None:
        raise InvalidRequestError(
            "sigmas and timesteps are two forms of one grid; give one of them"
        )
    if is_custom(request) and request["schedule_options"]:
        name = request["recipe"]
        own = None if name is None else find_recipe(name)[1].timesteps
        if own is not None and request["timesteps"] == list(own):
            raise InvalidRequestError(
                "schedule_options belong to a schedule, which the timesteps of the recipe "
                f"{name!r} replace; say which schedule too, or leave schedule_options out"
            )
        raise InvalidRequestError(
            "schedule_options belong to a schedule, which sigmas and timesteps replace"
        )
    if request["sigmas"] is not None:
        sigmas = _descending("sigmas", request["sigmas"])
        if len(sigmas) < 2:
            raise InvalidRequestError(
                f"sigmas need at least two numbers, one step; got {len(sigmas)}"
            )
        return sigmas
    if request["timesteps"] is not None:
        return _sigmas_of(request["timesteps"], noise_schedule)
    facts = manifest.scheduler
    defaults: dict[str, Any] = {
        "timestep_spacing": facts.timestep_spacing,
        "steps_offset": facts.steps_offset,
    }
    info = find_schedule(request["schedule"])
    if info.name == "scheduler" and facts.edm is not None:
        info = find_schedule(facts.edm.sigma_schedule)
        if "rho" in info.options:
            defaults["rho"] = facts.edm.rho
    if "model" in info.options:
        defaults["model"] = manifest.family
    options = schedule_options(request)
    check_options(info, options)
    steps = check_int("steps", request["steps"], 1, MAX_STEPS)
    levels: list[float] = sigmas_for(
        info.name, steps, noise_schedule, **{**defaults, **options}
    ).tolist()
    return levels


def schedule_options(request: Request) -> Mapping[str, Any]:
    """The options given for the schedule."""
    return check_mapping("schedule_options", request["schedule_options"])


def _sigmas_of(timesteps: object, noise_schedule: NoiseSchedule) -> list[float]:
    """The σ of training timesteps, fractional ones too, and the 0 that a run ends with."""
    numbers = _descending("timesteps", timesteps)
    levels = noise_schedule.sigma_max, noise_schedule.sigma_min
    first, last = map(noise_schedule.timestep, levels)
    slack = _ROUNDING * (first - last)
    if not numbers or not all(last - slack <= number <= first + slack for number in numbers):
        raise InvalidRequestError(
            f"timesteps must be from {first:g} down to {last:g}, at least one of them; the final "
            "sigma of 0 is added"
        )
    return [*map(noise_schedule.sigma, numbers), 0.0]


def _descending(name: str, values: object) -> list[float]:
    try:
        # One more than there may be: some sequences never end.
        numbers = [float(value) for value in islice(values, MAX_STEPS + 2)]  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidRequestError(f"{name} must be a sequence of numbers") from error
    if len(numbers) > MAX_STEPS + 1:
        raise InvalidRequestError(f"{name} are too many: a run has at most {MAX_STEPS} steps")
    if any(not high > low for high, low in pairwise(numbers)):
        raise InvalidRequestError(f"{name} must descend strictly")
    return numbers
