"""Noise schedules and grids: golden values, the formulas' properties, and refusals."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.errors import InvalidRequestError
from kdrt.sampling import SCHEDULES, NoiseSchedule, sigmas_for
from kdrt.sampling.schedules import ContinuousSchedule

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


@given(sigma=st.floats(1e-4, 1e4))
def test_a_continuous_timestep_is_a_quarter_of_the_logarithm(sigma: float) -> None:
    """Inside of the range and outside; there is no table to clamp to."""
    schedule = ContinuousSchedule.from_range(0.002, 80.0)
    assert schedule.timestep(sigma) == pytest.approx(0.25 * np.log(sigma), rel=1e-12, abs=1e-15)
    assert schedule.sigma(schedule.timestep(sigma)) == pytest.approx(sigma, rel=1e-12)


def test_the_table_of_a_continuous_range_is_even_in_the_logarithm() -> None:
    schedule = ContinuousSchedule.from_range(0.002, 80.0, 501)
    assert (len(schedule.sigmas), schedule.sigma_min, schedule.sigma_max) == (501, 0.002, 80.0)
    np.testing.assert_allclose(np.diff(schedule.log_sigmas), np.log(40_000) / 500, rtol=1e-9)
    assert schedule.level(250) == pytest.approx(0.4)
    assert schedule.timestep(0.0) == schedule.timestep(0.002)
    for low, high in ((0.0, 1.0), (2.0, 2.0), (3.0, 2.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(
            InvalidRequestError, match="sigma_min must be above 0 and below sigma_max"
        ):
            ContinuousSchedule.from_range(low, high)


def test_timestep_equals_k_diffusion(kd_external: ModuleType) -> None:
    upstream = kd_external.DiscreteSchedule(torch.tensor(SD.sigmas), quantize=False)
    sigmas = np.geomspace(0.02, 20.0, 500)
    expected = upstream.sigma_to_t(torch.tensor(sigmas))
    result = torch.tensor([SD.timestep(float(sigma)) for sigma in sigmas], dtype=torch.float64)
    assert (result - expected).abs().max() < 1e-9
    at_knots = torch.tensor([SD.timestep(float(sigma)) for sigma in SD.sigmas])
    assert torch.equal(at_knots, torch.arange(1000.0))


# Ten steps on the table of Stable Diffusion, to the digits of the programs that have them.
EXPONENTIAL = "14.6146 7.3249 3.6712 1.8400 .9222 .4622 .2317 .1161 .0582 .0292 0"
EVEN_TIMESTEPS = "14.6146 7.8399 4.6092 2.9183 1.9502 1.3449 .9324 .6250 .3687 .0292 0"
FROM_THE_TOP = "14.6146 8.3028 5.0878 3.3211 2.2765 1.6129 1.1606 .8299 .5693 .3417 0"
GOLDEN = {
    "karras": "14.6146 9.1029 5.4784 3.1686 1.7494 .9141 .4469 .2014 .0819 .0292 0",
    "exponential": EXPONENTIAL,
    "polyexponential": EXPONENTIAL,
    "scheduler": EVEN_TIMESTEPS,
    "linspace": EVEN_TIMESTEPS,
    "normal": EVEN_TIMESTEPS,
    "sgm_uniform": "14.6146 8.3072 5.0924 3.3251 2.2797 1.6156 1.1629 .8319 .5712 .3437 0",
    "simple": FROM_THE_TOP,
    "trailing": FROM_THE_TOP,
    "sd_turbo": FROM_THE_TOP,
    "ddim_uniform": "8.3907 5.1344 3.3478 2.2929 1.6237 1.1682 .8357 .5741 .3462 .0413 0",
    "beta_timestep": "14.6146 11.5428 7.3718 4.3728 2.6152 1.6183 1.0273 .6549 .3955 .1991 0",
    "beta_sigma": "14.6146 13.9278 12.4910 10.5976 8.4424 6.2014 4.0462 2.1528 .7160 .0292 0",
    "kl_optimal_comfyui": "14.6146 4.2324 2.3937 1.5971 1.1330 .8152 .5729 .3725 .1953 .0292 0",
    "laplace": "14.6146 2.1213 1.5000 1.2247 1.0607 .9428 .8165 .6667 .4714 .0292 0",
    "align_your_steps": "14.615 6.475 3.861 2.697 1.886 1.396 .963 .652 .399 .152 0",
    "gits": "14.6146 5.8552 2.8448 1.6705 1.0890 .7481 .5012 .3210 .1989 .0982 0",
}


@pytest.mark.parametrize("schedule", GOLDEN)
def test_ten_steps(schedule: str) -> None:
    golden = [float(number) for number in GOLDEN[schedule].split()]
    assert sigmas_for(schedule, 10, SD).round(4).tolist() == golden


@pytest.mark.parametrize(
    ("schedule", "steps", "options", "start"),
    [
        ("linear_quadratic", 10, {}, "14.61 14.54 14.47 14.40 14.32 14.25 13.62 11.88 9.03 5.07 0"),
        ("kl_optimal_a1111", 10, {}, "14.61 4.57"),
        ("sd_turbo", 4, {}, "14.61 8.30 5.09 3.32 0"),
        ("align_your_steps", 10, {"end_rule": "append", "model": "sdxl"}, "14.62 5.96 3.34"),
        ("align_your_steps", 10, {"model": "sdxl"}, "14.62 6.32 3.77 2.18 1.34 .86"),
        ("gits_forge", 11, {}, "14.62 4.62 2.51 1.24 .70 .40 .24 .16 .10 .09 .03 0"),
        ("gits_forge", 11, {"model": "sdxl"}, "14.62 4.73 2.57 1.53 .99 .65 .42"),
    ],
)
def test_more_of_the_same_programs(
    schedule: str, steps: int, options: dict[str, Any], start: str
) -> None:
    golden = [float(number) for number in start.split()]
    sigmas = sigmas_for(schedule, steps, SD, **options)
    assert sigmas[: len(golden)] == pytest.approx(golden, abs=0.0051)


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
def test_formulas_equal_k_diffusion(kd: ModuleType, schedule: str, options: dict[str, Any]) -> None:
    make = getattr(kd, f"get_sigmas_{schedule}")
    ends = () if schedule == "vp" else (SD.sigma_min, SD.sigma_max)
    expected = make(20, *ends, **options).numpy()
    # Upstream computes in float32, where 1 - exp(tiny) of vp loses three digits.
    tolerance = 1e-3 if schedule == "vp" else 1e-5
    np.testing.assert_allclose(sigmas_for(schedule, 20, SD, **options), expected, rtol=tolerance)


LEAST = {"gits": 2}
MOST = {"sd_turbo": 9, "consistency": 49}
RANGED = [name for name, info in SCHEDULES.items() if "sigma_min" in info.options]


@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    spacing=st.sampled_from(["linspace", "leading", "trailing"]),
    steps=st.integers(1, 200),
    offset=st.integers(0, 1),
    discard=st.booleans(),
)
@settings(max_examples=600)
def test_every_grid_descends_to_its_end(
    schedule: str, spacing: str, steps: int, offset: int, discard: bool
) -> None:
    steps = max(LEAST.get(schedule, 1), min(steps, MOST.get(schedule, 200)))
    sigmas = sigmas_for(
        schedule,
        steps,
        SD,
        timestep_spacing=spacing,
        steps_offset=offset,
        discard_penultimate=discard,
    )
    assert sigmas.dtype == np.float64
    assert (np.diff(sigmas) < 0).all()
    if schedule == "ddim_uniform":
        assert len(sigmas) >= steps + 1
    elif schedule in ("beta_timestep", "laplace"):
        assert 2 <= len(sigmas) <= steps + 1
    else:
        assert len(sigmas) == steps + 1
    assert sigmas[-1] == (SD.sigma_min if schedule == "kl_optimal_a1111" else 0)
    if schedule in RANGED:
        assert sigmas[0] == SD.sigma_max
        assert discard or steps == 1 or sigmas[sigmas > 0][-1] == SD.sigma_min
    if SCHEDULES[schedule].covers == "training":
        assert SD.sigma_min * (1 - 1e-12) <= sigmas[-2] <= sigmas[0] <= SD.sigma_max * (1 + 1e-12)


@given(schedule=st.sampled_from(list(SCHEDULES)), steps=st.integers(2, 9))
def test_discarding_the_penultimate_level(schedule: str, steps: int) -> None:
    longer = sigmas_for(schedule, steps + 1, SD)
    shorter = sigmas_for(schedule, steps, SD, discard_penultimate=True)
    assert shorter.tolist() == [*longer[:-2], longer[-1]]


@given(low=st.floats(0.001, 0.5), factor=st.floats(1.5, 1e4), steps=st.integers(2, 60))
def test_a_range_of_ones_own(low: float, factor: float, steps: int) -> None:
    for schedule in RANGED:
        if schedule == "laplace":  # its quantiles do not reach every range's ends
            continue
        high = low * factor
        sigmas = sigmas_for(schedule, steps, SD, sigma_min=low, sigma_max=high)
        assert (sigmas[0], sigmas[sigmas > 0][-1]) == (high, low)
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
        ("carras", 5, {}, "unknown schedule 'carras'; known: karras, exponential, polyexponential"),
        ("beta", 5, {}, "'beta' is not the same everywhere; choose beta_timestep .*beta_sigma"),
        ("KL Optimal", 5, {}, "choose kl_optimal_comfyui .*kl_optimal_a1111"),
        ("turbo", 5, {}, "choose trailing .*sd_turbo"),
        ("sd_turbo", 11, {}, "at most 10 steps, not 11"),
        (
            "consistency",
            51,
            {},
            "at most 50, the original_steps of the consistency schedule, not 51",
        ),
        (
            "consistency",
            9,
            {"original_steps": 1001},
            "original_steps must be at most 1000, the num",
        ),
        ("consistency", 9, {"original_steps": 0}, "original_steps must be a whole number from 1"),
        ("gits", 1, {}, "gits has tables for 2 steps and more"),
        ("simple", 1001, {}, "at most 1000, the number of training timesteps, for the simple"),
        ("laplace", 5, {"beta": 0.0}, "beta must be from 0.01 to 100, not 0"),
        ("laplace", 5, {"mu": float("inf")}, "mu must be a finite number"),
        ("vp", 5, {"beta_d": 1e4}, "does not descend with these options"),
        ("linear_quadratic", 5, {"threshold_noise": 0.9}, "does not descend with these options"),
        ("linear_quadratic", 5, {"linear_steps": 5}, "linear_steps must be below the 5 steps"),
        ("align_your_steps", 5, {"model": "flux"}, "model must be sd or sdxl, not 'flux'"),
        ("align_your_steps", 5, {"end_rule": 0}, "end_rule must be replace or append, not 0"),
        ("karras", 5, {"sigma_min": "low"}, "sigma_min must be a finite number, not 'low'"),
        ("karras", 5, {"discard_penultimate": 1}, "must be True or False, not 1"),
        ("karras", 0, {}, "steps must be a whole number of at least 1, not 0"),
        ("karras", 2.5, {}, "steps must be a whole number of at least 1, not 2.5"),
        ("karras", True, {}, "steps must be a whole number of at least 1, not True"),
        (
            "karras",
            5,
            {"timestep_spacing": "even"},
            "must be one of linspace, leading, .* not 'even'",
        ),
        ("karras", 5, {"rho": 0.0}, "rho must be a finite number above 0, not 0"),
        (
            "exponential",
            5,
            {"rho": 7.0},
            "has no option 'rho': it accepts sigma_min, sigma_max",
        ),
        ("vp", 5, {"sigma_min": 0.1}, "the vp schedule has no option 'sigma_min'"),
        ("scheduler", 5, {"sigma_max": 9.0}, "the scheduler schedule has no option 'sigma_max'"),
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
    with pytest.raises(InvalidRequestError, match=message):
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
    with pytest.raises(InvalidRequestError, match=message):
        NoiseSchedule.from_betas(*arguments)


@pytest.mark.parametrize("sigmas", [[1.0], [2.0, 1.0], [0.0, 1.0], [1.0, np.inf], [[1.0, 2.0]]])
def test_refused_tables(sigmas: list[Any]) -> None:
    with pytest.raises(
        InvalidRequestError, match="at least two finite, positive, strictly ascending"
    ):
        NoiseSchedule(np.array(sigmas))
