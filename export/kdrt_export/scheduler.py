"""What a model's scheduler file says of its training."""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ValidationError

from kdrt.bundle import EdmFacts, SchedulerFacts
from kdrt.request.grid import training_table
from kdrt.sampling import NoiseSchedule
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.report import Report

DISCRETE = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE"),
        *("DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete"),
        *("IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM"),
        *("SASolver", "TCD", "UniPCMultistep"),
    )
)
"""Schedulers of diffusers for models trained on discrete timesteps, whose keys mean the same."""

_EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler_facts(config: dict[str, Any], report: Report) -> SchedulerFacts:
    """Resolve a scheduler file. Of a model trained on discrete timesteps that is done as the
    removed pipelines did: what the file does not say is the default of diffusers'
    LMSDiscreteScheduler, whichever of the discrete schedulers it names.

    Raises:
        UnsupportedModelError: the model was trained in another way than the runtime knows, or the
            file holds values that are of no use; the message names them.
    """
    kind = config.get("_class_name", "LMSDiscreteScheduler")
    prediction = config.get("prediction_type", "epsilon")
    _refuse_unsupported(kind, prediction, config)
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if zero_snr and prediction == "epsilon":
        zero_snr = False
        report.note(
            "rescale_betas_zero_snr is ignored, as the removed pipelines did: a model that "
            "predicts noise (epsilon) cannot begin at noise alone; if this one predicts velocity, "
            "set prediction_type to v_prediction in scheduler_config.json"
        )
    try:
        facts = SchedulerFacts(
            beta_start=config.get("beta_start", 0.0001),
            beta_end=config.get("beta_end", 0.02),
            beta_schedule=config.get("beta_schedule", "linear"),
            trained_betas=config.get("trained_betas"),
            num_train_timesteps=config.get("num_train_timesteps", 1000),
            prediction_type=prediction,
            timestep_spacing=config.get("timestep_spacing", "linspace"),
            steps_offset=config.get("steps_offset", 0),
            use_karras_sigmas=bool(config.get("use_karras_sigmas")),
            use_exponential_sigmas=bool(config.get("use_exponential_sigmas")),
            use_beta_sigmas=bool(config.get("use_beta_sigmas")),
            rescale_betas_zero_snr=zero_snr and kind not in _EDM,
            explicit=tuple(sorted(key for key in config if not key.startswith("_"))),
        )
        if kind in _EDM:
            return facts.model_copy(update={"edm": _edm(config)})
        if config.get("timestep_type") == "continuous":
            return facts.model_copy(update={"edm": _continuous(config, training_table(facts))})
    except ValidationError as error:
        raise UnsupportedModelError(
            f"the model's scheduler settings are wrong: {_said(error)}"
        ) from error
    if zero_snr:
        report.note(
            "rescale_betas_zero_snr: sigma begins at 4096; schedules of training timesteps, such "
            "as trailing or sgm_uniform, suit that"
        )
    return facts


def _refuse_unsupported(kind: object, prediction: object, config: dict[str, Any]) -> None:
    """Whatever would be sampled wrongly."""
    if not isinstance(kind, str) or kind not in (*DISCRETE, *_EDM):
        raise UnsupportedModelError(
            f"this model's scheduler is {kind!r}, and kdrt samples models trained on discrete "
            "timesteps (EulerDiscreteScheduler and its like) or in the EDM formulation "
            "(EDMEulerScheduler) alone, not by flow matching or consistency; if it was trained in "
            "one of those ways, say so by the scheduler's class in model_index.json and "
            "scheduler_config.json"
        )
    if prediction not in PREDICTIONS:
        raise UnsupportedModelError(
            f"this model predicts {prediction!r}; kdrt exports models of prediction_type "
            f"{', '.join(PREDICTIONS)}"
        )
    if config.get("use_flow_sigmas"):
        raise UnsupportedModelError(
            "this model was trained by flow matching (use_flow_sigmas in scheduler_config.json), "
            "which kdrt cannot sample"
        )
    if kind in DISCRETE and "sigma_data" in config:
        raise UnsupportedModelError(
            f"scheduler_config.json names {kind} and gives sigma_data, which only models in the "
            "EDM formulation have: make _class_name EDMEulerScheduler, or remove sigma_data"
        )
    continuous = config.get("timestep_type") == "continuous"
    if continuous and kind in DISCRETE and prediction != "v_prediction":
        raise UnsupportedModelError(
            "scheduler_config.json says timestep_type 'continuous' and prediction_type "
            f"'{prediction}', which diffusers takes for discrete timesteps: make timestep_type "
            "'discrete' if the model was trained on them, or _class_name EDMEulerScheduler if not"
        )


def _edm(config: dict[str, Any]) -> EdmFacts:
    """What the file of an EDM scheduler does not say is that scheduler's default."""
    return EdmFacts(
        sigma_min=config.get("sigma_min", 0.002),
        sigma_max=config.get("sigma_max", 80.0),
        sigma_data=config.get("sigma_data", 0.5),
        sigma_schedule=config.get("sigma_schedule", "karras"),
        rho=config.get("rho", 7.0),
    )


def _continuous(config: dict[str, Any], table: NoiseSchedule) -> EdmFacts:
    """EulerDiscreteScheduler with continuous timesteps: the EDM formulation for data of standard
    deviation 1, as CosXL has it. Where the file gives no range it is that of the betas."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    return EdmFacts(
        sigma_min=table.sigma_min if low is None else low,
        sigma_max=table.sigma_max if high is None else high,
        sigma_data=1.0,
        sigma_schedule="karras" if config.get("use_karras_sigmas") else "exponential",
    )


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key} is {reprlib.repr(first['input'])}: {reason}" if key else reason
