"""Noise schedules and grids: golden values, the formulas' properties, and refusals."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.errors import InvalidRequest
from kdrt.sampling import SCHEDULES, NoiseSchedule, sigmas_for

SD = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")


def test_stable_diffusion_table() -> None:
    assert SD.sigmas.dtype == np.float64
    assert len(SD.sigmas) == len(SD.log_sigmas) == 1000
    assert SD.sigma_min == pytest.approx(0.0291671582, abs=5e-11)
    assert SD.sigma_max == pytest.approx(14.6146412, abs=5e-8)


@pytest.mark.parametrize(
    ("beta_schedule", "betas"),
    [
        ("linear", np.linspace(0.001, 0.02, 10)),
        ("scaled_linear", np.linspace(0.001**0.5, 0.02**0.5, 10) ** 2),
    ],
)
def test_sigmas_follow_from_betas(beta_schedule: str, betas: np.ndarray) -> None:
    alpha_bar = np.cumprod(1 - betas)
    expected = np.sqrt((1 - alpha_bar) / alpha_bar)
    schedule = NoiseSchedule.from_betas(0.001, 0.02, beta_schedule, 10)
    np.testing.assert_allclose(schedule.sigmas, expected, rtol=1e-12)
    explicit = NoiseSchedule.from_betas(0.5, 0.6, "linear", 7, trained_betas=betas.tolist())
    np.testing.assert_allclose(explicit.sigmas, expected, rtol=1e-12)


def test_squared_cosine_follows_alpha_bar() -> None:
    schedule = NoiseSchedule.from_betas(0, 0, "squaredcos_cap_v2", 1000)
    t = np.array([0.1, 0.5, 0.9])
    alpha_bar = (
        np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    expected = np.sqrt((1 - alpha_bar) / alpha_bar)
    np.testing.assert_allclose(schedule.sigmas[[99, 499, 899]], expected, rtol=1e-10)


def test_a_schedule_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        SD.sigmas[0] = 1.0
    with pytest.raises(AttributeError):
        SD.sigmas = SD.sigmas  # type: ignore[misc]


@given(st.floats(0.0, 999.0))
def test_timestep_inverts_sigma(timestep: float) -> None:
    assert SD.timestep(SD.sigma(timestep)) == pytest.approx(timestep, abs=1e-8)


def test_timestep_and_sigma_are_clamped() -> None:
    assert SD.timestep(0.0) == SD.timestep(1e-6) == SD.timestep(SD.sigma_min) == 0.0
    assert SD.timestep(1e6) == SD.timestep(SD.sigma_max) == 999.0
    assert SD.sigma(-5.0) == pytest.approx(SD.sigma_min, rel=1e-15)
    assert SD.sigma(2000.0) == pytest.approx(SD.sigma_max, rel=1e-15)


def test_timestep_equals_k_diffusion(kd_external: ModuleType) -> None:
    upstream = kd_external.DiscreteSchedule(torch.tensor(SD.sigmas), quantize=False)
    sigmas = np.geomspace(0.02, 20.0, 500)
    expected = upstream.sigma_to_t(torch.tensor(sigmas))
    result = torch.tensor([SD.timestep(float(sigma)) for sigma in sigmas], dtype=torch.float64)
    assert (result - expected).abs().max() < 1e-9
    at_knots = torch.tensor([SD.timestep(float(sigma)) for sigma in SD.sigmas])
    assert torch.equal(at_knots, torch.arange(1000.0))


GOLDEN = {
    "karras": [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292, 0],
    "exponential": [
        *(14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292, 0)
    ],
    "polyexponential": [
        *(14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292, 0)
    ],
    "scheduler": [
        *(14.6146, 7.8399, 4.6092, 2.9183, 1.9502, 1.3449, 0.9324, 0.6250, 0.3687, 0.0292, 0)
    ],
}


@pytest.mark.parametrize("schedule", GOLDEN)
def test_ten_steps(schedule: str) -> None:
    assert sigmas_for(schedule, 10, SD).round(4).tolist() == GOLDEN[schedule]


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        ("scheduler", {}, [14.6146, 4.0861, 1.6156, 0.6952, 0.0292, 0]),
        (
            "scheduler",
            {"timestep_spacing": "leading", "steps_offset": 1},
            [5.1344, 2.2929, 1.1682, 0.5741, 0.0413, 0],
        ),
        (
            "scheduler",
            {"timestep_spacing": "trailing"},
            [14.6146, 5.0878, 2.2765, 1.1606, 0.5693, 0],
        ),
        ("karras", {}, [14.6146, 4.7965, 1.2741, 0.2479, 0.0292, 0]),
    ],
)
def test_grids_of_the_removed_pipelines(
    schedule: str, options: dict[str, Any], expected: list[float]
) -> None:
    assert sigmas_for(schedule, 5, SD, **options).round(4).tolist() == expected


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("karras", {}),
        ("karras", {"rho": 3.0}),
        ("exponential", {}),
        ("polyexponential", {"rho": 2.0}),
        ("vp", {}),
    ],
)
def test_formulas_equal_k_diffusion(
    kd: ModuleType, schedule: str, options: dict[str, float]
) -> None:
    make = getattr(kd, f"get_sigmas_{schedule}")
    ends = () if schedule == "vp" else (SD.sigma_min, SD.sigma_max)
    expected = make(20, *ends, **options).numpy()
    # Upstream computes in float32, where 1 - exp(tiny) of vp loses three digits.
    tolerance = 1e-3 if schedule == "vp" else 1e-5
    np.testing.assert_allclose(sigmas_for(schedule, 20, SD, **options), expected, rtol=tolerance)


@given(
    schedule=st.sampled_from(SCHEDULES),
    spacing=st.sampled_from(["linspace", "leading", "trailing"]),
    steps=st.integers(1, 200),
    offset=st.integers(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_every_grid_descends_to_zero(schedule: str, spacing: str, steps: int, offset: int) -> None:
    sigmas = sigmas_for(schedule, steps, SD, timestep_spacing=spacing, steps_offset=offset)
    assert sigmas.dtype == np.float64
    assert sigmas.shape == (steps + 1,)
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()
    if schedule in ("karras", "exponential", "polyexponential"):
        assert sigmas[0] == SD.sigma_max
        assert steps == 1 or sigmas[-2] == SD.sigma_min
    elif schedule == "scheduler":
        assert SD.sigma_min <= sigmas[-2] <= sigmas[0] <= SD.sigma_max


@given(low=st.floats(0.001, 0.5), factor=st.floats(1.5, 1e4), steps=st.integers(2, 60))
def test_a_range_of_ones_own(low: float, factor: float, steps: int) -> None:
    for schedule in ("karras", "exponential", "polyexponential"):
        high = low * factor
        sigmas = sigmas_for(schedule, steps, SD, sigma_min=low, sigma_max=high)
        assert (sigmas[0], sigmas[-2]) == (high, low)
        assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_every_number_of_steps_of_the_scheduler(spacing: str) -> None:
    for steps in range(1, 1001):
        sigmas = sigmas_for("scheduler", steps, SD, timestep_spacing=spacing)
        assert len(sigmas) == steps + 1
        assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize(
    ("schedule", "steps", "options", "message"),
    [
        ("Karras", 5, {}, "unknown schedule 'Karras'; known: karras, exponential, polyexponential"),
        ("karras", 0, {}, "steps must be a whole number of at least 1, not 0"),
        ("karras", 2.5, {}, "steps must be a whole number of at least 1, not 2.5"),
        ("karras", True, {}, "steps must be a whole number of at least 1, not True"),
        ("karras", 5, {"timestep_spacing": "even"}, "unknown timestep spacing 'even'; known: lin"),
        ("karras", 5, {"rho": 0.0}, "rho must be a finite number above 0, not 0"),
        ("exponential", 5, {"rho": 7.0}, "the exponential schedule has no rho; it applies to karr"),
        ("vp", 5, {"sigma_min": 0.1}, "the vp schedule has a range of its own"),
        ("scheduler", 5, {"sigma_max": 9.0}, "the scheduler schedule has a range of its own"),
        ("karras", 5, {"sigma_min": 20.0}, "sigma_min must be above 0 and below sigma_max, not 20"),
        ("karras", 5, {"sigma_min": 0.0}, "sigma_min must be above 0 and below sigma_max, not 0"),
        ("scheduler", 1001, {}, "steps must be at most 1000, the number of training timesteps"),
        (
            "scheduler",
            1000,
            {"timestep_spacing": "leading", "steps_offset": 1},
            "leading spacing of 1000 steps with steps_offset 1 leaves the 1000 training timesteps",
        ),
    ],
)
def test_refusals(schedule: str, steps: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sigmas_for(schedule, steps, SD, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.001, 0.02, "cosine"), "unknown beta schedule 'cosine'; known: linear, scaled_linear"),
        ((0.0, 0.02, "linear"), "every beta must lie strictly between 0 and 1"),
        ((0.1, 0.2, "linear", 3, [0.1, 1.0]), "every beta must lie strictly between 0 and 1"),
        ((0.1, 0.2, "linear", 1), "the training sigmas must be at least two finite"),
    ],
)
def test_refused_betas(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        NoiseSchedule.from_betas(*arguments)


@pytest.mark.parametrize("sigmas", [[1.0], [2.0, 1.0], [0.0, 1.0], [1.0, np.inf], [[1.0, 2.0]]])
def test_refused_tables(sigmas: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="at least two finite, positive, strictly ascending"):
        NoiseSchedule(np.array(sigmas))
