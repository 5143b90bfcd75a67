"""What a model's scheduler file says of its training."""

from __future__ import annotations

from typing import Any

from kdrt.bundle import SchedulerFacts
from kdrt_export.errors import UnsupportedModel
from kdrt_export.report import Report


def scheduler_facts(config: dict[str, Any], report: Report) -> SchedulerFacts:
    """Resolve a scheduler file as the removed pipelines did: what it does not say is the default
    of diffusers' LMSDiscreteScheduler, whatever scheduler it names.

    Raises:
        UnsupportedModel: the model predicts neither noise nor velocity.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise UnsupportedModel(
            f"this model predicts '{prediction}'; kdrt exports epsilon and v_prediction models"
        )
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if zero_snr and prediction == "epsilon":
        zero_snr = False
        report.note(
            "rescale_betas_zero_snr is ignored, as the removed pipelines did: a model that "
            "predicts noise (epsilon) cannot begin at noise alone; if this one predicts velocity, "
            "set prediction_type to v_prediction in scheduler_config.json"
        )
    if zero_snr:
        report.note(
            "rescale_betas_zero_snr: sigma begins at 4096; schedules of training timesteps, such "
            "as trailing or sgm_uniform, suit that"
        )
    return SchedulerFacts(
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
        rescale_betas_zero_snr=zero_snr,
        explicit=tuple(sorted(key for key in config if not key.startswith("_"))),
    )
