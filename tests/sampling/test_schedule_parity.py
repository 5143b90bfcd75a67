"""Schedules against the programs they come from, with random parameters."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdrt.sampling import SCHEDULES, NoiseSchedule, find_schedule, sigmas_for
from kdrt.sampling.schedules.quantile import beta_quantile

SD = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
RANDOM = np.random.default_rng(5)
RANGES = [(low, low * factor) for low, factor in RANDOM.uniform([0.001, 5], [0.5, 5000], (4, 2))]


@pytest.mark.parametrize("steps", [1, 2, 9, 40])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_k_diffusion(kd: ModuleType, steps: int, low: float, high: float) -> None:
    rho = float(RANDOM.uniform(0.5, 9))
    span: dict[str, Any] = {"sigma_min": low, "sigma_max": high}
    own: dict[str, dict[str, Any]] = {
        "karras": {"rho": rho},
        "exponential": {},
        "polyexponential": {},
    }
    for name, options in own.items():
        expected = getattr(kd, f"get_sigmas_{name}")(steps, low, high, **options).numpy()
        np.testing.assert_allclose(
            sigmas_for(name, steps, SD, **span, **options), expected, rtol=2e-5
        )


def test_k_diffusions_vp_and_training_grid(kd: ModuleType, kd_external: ModuleType) -> None:
    options: dict[str, Any] = {"beta_d": 14.3, "beta_min": 0.27, "eps_s": 0.02}
    expected = kd.get_sigmas_vp(17, **options).numpy()
    np.testing.assert_allclose(sigmas_for("vp", 17, SD, **options), expected, rtol=1e-4)
    upstream = kd_external.DiscreteSchedule(torch.tensor(SD.sigmas), quantize=False)
    for steps in (1, 2, 7, 20, 333):
        np.testing.assert_allclose(
            sigmas_for("normal", steps, SD), upstream.get_sigmas(steps).numpy(), rtol=1e-5
        )


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 13, 61, 103, 250])
def test_diffusers_spacings(spacing: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LMSDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    expected = scheduler.sigmas.numpy()
    grid = sigmas_for(
        "scheduler",
        steps,
        SD,
        timestep_spacing=spacing,
        steps_offset=1,
        **({} if spacing == "leading" else {"exact_diffusers": True}),
    )
    np.testing.assert_allclose(grid, expected, rtol=2e-5)
    own = sigmas_for(spacing, steps, SD, steps_offset=int(spacing == "leading"))
    assert len(own) == steps + 1
    if spacing == "trailing" and steps in (61, 103):
        assert len(grid) == steps + 2


@pytest.mark.parametrize(
    ("switch", "name"),
    [
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_beta_sigmas", "beta_sigma"),
    ],
)
@pytest.mark.parametrize("steps", [2, 11, 30])
def test_diffusers_sigma_switches(switch: str, name: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **{switch: True}
    )
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(
        sigmas_for(name, steps, SD), scheduler.sigmas.numpy(), rtol=5e-5, atol=1e-7
    )


def test_diffusers_table_of_align_your_steps() -> None:
    utils = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    for model, key in [("sd", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")]:
        published = utils.AysSchedules[key]
        ours = sigmas_for("align_your_steps", 10, SD, model=model)
        assert ours[:-1] == pytest.approx(published[:-1], abs=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 17, 64])
def test_the_beta_schedules_follow_scipy(steps: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    alpha, beta = RANDOM.uniform(0.2, 3, 2).tolist()
    options = {"alpha": alpha, "beta": beta}
    ppf = stats.beta.ppf(1 - np.linspace(0, 1, steps), alpha, beta)
    in_sigma = SD.sigma_min + ppf * (SD.sigma_max - SD.sigma_min)
    grid = sigmas_for("beta_sigma", steps, SD, **options)
    np.testing.assert_allclose(grid[:-1], in_sigma, rtol=1e-9)
    timesteps = np.rint(
        stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), alpha, beta) * 999
    ).astype(int)
    expected = SD.sigmas[sorted(set(timesteps), reverse=True)]
    assert sigmas_for("beta_timestep", steps, SD, **options)[:-1].tolist() == expected.tolist()


def test_two_hundred_beta_timesteps_are_199() -> None:
    assert len(sigmas_for("beta_timestep", 200, SD)) == 200


@given(
    p=st.floats(1e-30, 1),  # SciPy answers NaN further out
    alpha=st.floats(-1.5, 1.5).map(lambda x: 10**x),
    beta=st.floats(-1.5, 1.5).map(lambda x: 10**x),
)
@example(p=1 - 2**-53, alpha=1.0, beta=10.0)
@example(p=1e-30, alpha=31.0, beta=1.0)
@example(p=0.5, alpha=0.6265493660269268, beta=0.6265493660269268)
@settings(max_examples=400)
def test_beta_quantiles_equal_scipys(p: float, alpha: float, beta: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.beta.ppf(p, alpha, beta)
    # SciPy stops 1e-8 away from some roots, even the middle of a symmetric distribution. A step of
    # Newton's method mends that, where the density can be computed and adds no rounding errors.
    density = stats.beta.pdf(expected, alpha, beta) if 1e-6 < expected < 1 else 0.0
    if density > 1e-3:
        expected -= (stats.beta.cdf(expected, alpha, beta) - p) / density
    assert beta_quantile(p, alpha, beta) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("steps", "actual"), [(1, 1), (7, 8), (15, 16), (30, 31), (10, 10)])
def test_lengths_of_ddim_uniform(steps: int, actual: int) -> None:
    assert len(sigmas_for("ddim_uniform", steps, SD)) == actual + 1


@pytest.mark.parametrize("steps", [2, 3, 10, 25])
def test_the_parabola_of_linear_quadratic_continues_the_line(steps: int) -> None:
    """Mochi's formula, with its own three coefficients in place of ours."""
    theta, linear = float(RANDOM.uniform(0.001, 0.05)), max(1, int(RANDOM.integers(1, steps)))
    quadratic = steps - linear
    rest = linear - theta * steps
    square = rest / (linear * quadratic**2)
    slope = theta / linear - 2 * rest / quadratic**2
    done = [i * theta / linear for i in range(linear)] + [
        square * i**2 + slope * i + square * linear**2 for i in range(linear, steps)
    ]
    expected = (1 - np.array([*done, 1.0])) * SD.sigma_max
    grid = sigmas_for("linear_quadratic", steps, SD, threshold_noise=theta, linear_steps=linear)
    np.testing.assert_allclose(grid, expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 19])
def test_laplace_without_a_zero_is_comfyuis(steps: int) -> None:
    mu, beta = RANDOM.uniform(-1, 1), RANDOM.uniform(0.2, 0.5)
    x = np.linspace(0, 1, steps + 1)
    log = mu - beta * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x) + 1e-5)
    expected = np.exp(log).clip(SD.sigma_min, SD.sigma_max)
    grid = sigmas_for("laplace", steps, SD, mu=float(mu), beta=float(beta), final_zero=False)
    np.testing.assert_allclose(grid, expected, rtol=1e-12)


def test_tables_between_their_points() -> None:
    """NVIDIA's interpolation: in ln σ, even in the index."""
    table = sigmas_for("align_your_steps", 11, SD, end_rule="append")[:-1]
    finer = sigmas_for("align_your_steps", 21, SD, end_rule="append")[:-1]
    assert finer[::2] == pytest.approx(table)
    assert finer[1::2] == pytest.approx(np.sqrt(table[:-1] * table[1:]))
    twenty, forty = sigmas_for("gits", 20, SD), sigmas_for("gits", 40, SD)
    assert forty[:-1:2] == pytest.approx(twenty[:-1])


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
def test_consistency_models_of_diffusers(scheduler: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, scheduler)()
    for steps in (*range(1, 26), 37, 49, 50):
        theirs.set_timesteps(steps)
        expected = [*SD.sigmas[theirs.timesteps.numpy()], 0.0]
        assert sigmas_for("consistency", steps, SD).tolist() == expected
    coarse = getattr(diffusers, scheduler)(original_inference_steps=7)
    coarse.set_timesteps(3)
    expected = [*SD.sigmas[coarse.timesteps.numpy()], 0.0]
    assert sigmas_for("consistency", 3, SD, original_steps=7).tolist() == expected


def test_every_run_of_gits_descends_over_the_training_range() -> None:
    for steps in range(2, 21):
        grid = sigmas_for("gits", steps, SD)
        assert len(grid) == steps + 1
        assert grid[0] == pytest.approx(SD.sigma_max, abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_labels_and_names_find_their_schedule(name: str) -> None:
    assert find_schedule(name).name == name
    assert find_schedule(name.replace("_", " ").title()).name == name or name == "gits"
    label = SCHEDULES[name].label
    if label not in ("Beta", "KL Optimal"):
        assert find_schedule(label).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Uniform", "normal"),
        ("SGM Uniform", "sgm_uniform"),
        ("DDIM", "ddim_uniform"),
        ("Align Your Steps GITS", "gits_forge"),
        ("AYS", "align_your_steps"),
    ],
)
def test_names_of_web_uis(spelling: str, name: str) -> None:
    assert find_schedule(spelling).name == name


class TestZeroTerminalSnr:
    @pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
    def test_equals_diffusers(self, beta_schedule: str) -> None:
        diffusers = pytest.importorskip("diffusers")
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule=beta_schedule,
            rescale_betas_zero_snr=True,
        )
        alpha_bar = scheduler.alphas_cumprod.double()
        expected = ((1 - alpha_bar) / alpha_bar).sqrt().numpy()
        table = NoiseSchedule.from_betas(0.00085, 0.012, beta_schedule, rescale_zero_snr=True)
        # diffusers accumulates in float32.
        np.testing.assert_allclose(table.sigmas, expected, rtol=3e-3)
        assert table.sigma_max == pytest.approx(4096, abs=1e-3)

    def test_the_first_timestep_stays(self) -> None:
        table = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear", rescale_zero_snr=True)
        assert table.sigma_min == pytest.approx(SD.sigma_min, rel=1e-12)
        assert table.sigmas[998] == pytest.approx(2254, abs=2)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_every_schedule_descends_on_it(self, schedule: str) -> None:
        table = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear", rescale_zero_snr=True)
        options: dict[str, Any] = {}
        grid = sigmas_for(schedule, 9, table, **options)
        assert (np.diff(grid) < 0).all()
