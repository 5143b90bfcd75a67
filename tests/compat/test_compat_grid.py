"""The σ grids equal those of diffusers' LMSDiscreteScheduler and of k-diffusion, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LMSDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.bundle import SchedulerFacts
from kdrt.compat.grid import TrainingTable, default_schedule, karras_grid
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts
from tests.oracles import kdiffusion


def facts_of(config: dict[str, Any]) -> SchedulerFacts:
    return scheduler_facts(config, Silent())


CONFIGS = st.fixed_dictionaries(
    {"beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])},
    optional={
        "beta_start": st.floats(1e-4, 1e-3),
        "beta_end": st.floats(5e-3, 2e-2),
        "num_train_timesteps": st.integers(50, 1000),
        "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
        "steps_offset": st.integers(0, 1),
        "use_karras_sigmas": st.booleans(),
    },
)


@settings(max_examples=60)
@given(CONFIGS, st.integers(1, 49))
def test_default_grid(config: dict[str, Any], steps: int) -> None:
    scheduler = LMSDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    facts = facts_of(config)
    table = TrainingTable.from_facts(facts)
    assert torch.equal(table.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.equal(default_schedule(facts, table, steps)[0], scheduler.sigmas)


@pytest.mark.parametrize("flag", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_other_spacings_of_sigma(flag: str) -> None:
    config = {"beta_schedule": "scaled_linear", flag: True}
    scheduler = LMSDiscreteScheduler(**config)
    scheduler.set_timesteps(7)
    facts = facts_of(config)
    out = default_schedule(facts, TrainingTable.from_facts(facts), 7)[0]
    assert torch.equal(out, scheduler.sigmas)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 49])
def test_karras_grid(steps: int) -> None:
    table = TrainingTable.from_facts(facts_of({"beta_schedule": "scaled_linear"}))
    ends = table.sigmas[0].item(), table.sigmas[-1].item()
    expected = kdiffusion.load("sampling").get_sigmas_karras(steps, *ends)
    assert torch.equal(karras_grid(table, steps), expected)


def test_timesteps_are_those_of_the_denoiser() -> None:
    table = TrainingTable.from_facts(facts_of({"beta_schedule": "scaled_linear"}))
    external = kdiffusion.load("external")
    expected = external.DiscreteSchedule(table.sigmas, quantize=False)
    sigmas = torch.rand(200) * 20 + 1e-3
    assert torch.equal(table.timestep(sigmas), expected.sigma_to_t(sigmas))


def test_a_key_that_is_missing_is_not_a_key_that_says_the_default() -> None:
    """PNDM's default spacing is leading; the pipelines took LMS's unless the file said so."""
    missing = facts_of({"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"})
    said = facts_of({"beta_schedule": "scaled_linear", "timestep_spacing": "leading"})
    first = [
        float(default_schedule(facts, TrainingTable.from_facts(facts), 5)[0][0])
        for facts in (missing, said)
    ]
    assert first[0] > 2 * first[1]


def test_zero_terminal_snr_only_where_it_is_asked_for() -> None:
    facts = facts_of(
        {
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        }
    )
    plain, honoured = (TrainingTable.from_facts(facts, zero_snr=on) for on in (False, True))
    assert torch.equal(
        plain.sigmas, TrainingTable.from_facts(facts_of({"beta_schedule": "scaled_linear"})).sigmas
    )
    assert float(honoured.sigmas[-1]) == pytest.approx(4096, rel=1e-3)
    torch.testing.assert_close(honoured.sigmas[0], plain.sigmas[0], rtol=1e-3, atol=0)
