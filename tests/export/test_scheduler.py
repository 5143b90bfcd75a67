"""What a scheduler file says of a model's training: followed, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import diffusers
import pytest
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from kdrt.errors import KdrtError
from kdrt.request.grid import training_table
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts

CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}


def saved(scheduler: Any) -> dict[str, Any]:
    """What `save_pretrained` writes."""
    return dict(json.loads(scheduler.to_json_string()))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (EDMEulerScheduler(), (0.002, 80.0, 0.5, "karras", 7.0)),
        (EDMDPMSolverMultistepScheduler(rho=3.0), (0.002, 80.0, 0.5, "karras", 3.0)),
        (
            EDMEulerScheduler(
                sigma_min=0.01,
                sigma_max=120.0,
                sigma_data=1.0,
                sigma_schedule="exponential",
                prediction_type="v_prediction",
            ),
            (0.01, 120.0, 1.0, "exponential", 7.0),
        ),
        (
            EulerDiscreteScheduler(
                **CONTINUOUS, sigma_min=0.002, sigma_max=120.0, use_karras_sigmas=True
            ),
            (0.002, 120.0, 1.0, "karras", 7.0),
        ),
        (
            EulerDiscreteScheduler(**CONTINUOUS, sigma_min=0.002, sigma_max=120.0),
            (0.002, 120.0, 1.0, "exponential", 7.0),
        ),
    ],
)
def test_models_of_the_edm_formulation(scheduler: Any, expected: tuple[Any, ...]) -> None:
    facts = scheduler_facts(saved(scheduler), Silent())
    assert facts.edm is not None
    found = (
        facts.edm.sigma_min,
        facts.edm.sigma_max,
        facts.edm.sigma_data,
        facts.edm.sigma_schedule,
        facts.edm.rho,
    )
    assert found == expected
    assert facts.prediction_type == scheduler.config.prediction_type


def test_a_continuous_model_without_a_range_has_that_of_its_betas() -> None:
    """As in diffusers."""
    scheduler = EulerDiscreteScheduler(**CONTINUOUS)
    edm = scheduler_facts(saved(scheduler), Silent()).edm
    assert edm is not None
    assert edm.sigma_max == pytest.approx(float(scheduler.sigmas[0]), rel=1e-4)
    assert edm.sigma_min == pytest.approx(float(scheduler.sigmas[-2]), rel=1e-4)


DISCRETE = (
    *("DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE", "LCM", "PNDM", "TCD"),
    *("DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete"),
    *("KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "SASolver", "UniPCMultistep"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DISCRETE)
def test_schedulers_of_discrete_timesteps_are_followed(name: str) -> None:
    kind = getattr(diffusers, f"{name}Scheduler")
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    facts = scheduler_facts(saved(scheduler), Silent())
    assert (facts.beta_start, facts.beta_end, facts.edm) == (0.00085, 0.012, None)
    assert training_table(facts).sigma_max == pytest.approx(14.6146, abs=1e-3)


@pytest.mark.parametrize(
    "kind",
    [
        *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "SCMScheduler"),
        *("CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler"),
        *("MyOwnScheduler", ["EulerDiscreteScheduler"], None, 3),
    ],
)
def test_other_ways_of_training_are_refused_by_name(kind: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"scheduler is {kind!r}".replace("[", r"\[")):
        scheduler_facts({"_class_name": kind}, Silent())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'"),
        ({"prediction_type": ["epsilon"]}, r"predicts \['epsilon'\]"),
        (
            saved(diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True)),
            "flow matching .use_flow_sigmas",
        ),
        ({**CONTINUOUS, "prediction_type": "epsilon"}, "takes for discrete timesteps"),
        ({**CONTINUOUS, "prediction_type": "sample"}, "takes for discrete timesteps"),
        (
            {"_class_name": "DDIMScheduler", "sigma_data": 0.5},
            "names DDIMScheduler and gives sigma_data",
        ),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'"),
        ({"beta_start": "a little"}, "beta_start is 'a little'"),
        ({"beta_end": float("nan")}, "beta_end is nan"),
        ({"beta_end": None}, "beta_end is None"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'"),
        ({"steps_offset": 1e9}, "steps_offset is 1000000000.0"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1:"),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, r"trained_betas\.1 is 1.0"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 numbers for 1000"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 80}, "sigma_min must be below"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0}, "sigma_min is 0"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": -1}, "sigma_data is -1"),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": float("inf")}, "sigma_max is inf"),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_schedule": "even"},
            "sigma_schedule is 'even'",
        ),
        ({**CONTINUOUS, "sigma_max": "much"}, "sigma_max is 'much'"),
    ],
)
def test_settings_that_are_of_no_use_are_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        scheduler_facts(config, Silent())


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([0.5, 0.6])
)
KEYS = (
    *("_class_name", "beta_start", "beta_end", "beta_schedule", "trained_betas", "sigma_data"),
    *("num_train_timesteps", "prediction_type", "timestep_spacing", "timestep_type", "rho"),
    *("steps_offset", "sigma_min", "sigma_max", "sigma_schedule", "rescale_betas_zero_snr"),
)


@given(
    config=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    base=st.sampled_from([{}, CONTINUOUS, {"_class_name": "EDMEulerScheduler"}]),
)
def test_any_file_gives_a_table_or_a_sentence(config: dict[str, Any], base: dict[str, Any]) -> None:
    try:
        table = training_table(scheduler_facts({**base, **config}, Silent()))
    except KdrtError:
        return
    assert 0 < table.sigma_min < table.sigma_max < float("inf")


def test_a_model_may_predict_the_image_itself() -> None:
    facts = scheduler_facts({"prediction_type": "sample"}, Silent())
    assert facts.prediction_type == "sample"
