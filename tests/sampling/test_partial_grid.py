"""Parts of a grid: diffusers' strength, and two models that meet at one noise level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt.errors import InvalidRequestError
from kdrt.sampling import SCHEDULES, NoiseSchedule, partial_grid, sigmas_for

SD = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SHORT = NoiseSchedule.from_betas(0.001, 0.03, "linear", 37)

FEW = ("sd_turbo", "gits", "consistency")
"""These have not any number of steps."""

schedules = st.sampled_from([name for name in SCHEDULES if name not in FEW])
fractions = st.floats(0.01, 0.99)


def test_nothing_asked_for_is_the_whole_grid() -> None:
    grid = sigmas_for("karras", 7, SD)
    assert np.array_equal(partial_grid(grid, SD), grid)
    assert np.array_equal(partial_grid(grid, SD, strength=1), grid)


@given(schedule=schedules, steps=st.integers(1, 60), strength=st.floats(0.001, 1.0))
def test_strength_keeps_the_tail_that_diffusers_keeps(
    schedule: str, steps: int, strength: float
) -> None:
    grid = sigmas_for(schedule, steps, SD)
    kept = min(int((len(grid) - 1) * strength), len(grid) - 1)
    if kept == 0:
        with pytest.raises(InvalidRequestError, match="leaves none; ask for at least"):
            partial_grid(grid, SD, strength=strength)
        return
    part = partial_grid(grid, SD, strength=strength)
    assert len(part) == kept + 1
    assert np.array_equal(part, grid[-len(part) :])


@pytest.mark.parametrize("strength", [0.02, 0.3, 0.5, 0.62, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_strength_starts_at_the_timestep_of_diffusers(steps: int, strength: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionImg2ImgPipeline
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(steps)

    class Holder:
        pass

    holder = Holder()
    holder.scheduler = scheduler  # type: ignore[attr-defined]
    timesteps, count = pipeline.get_timesteps(holder, steps, strength, "cpu")
    grid = sigmas_for("scheduler", steps, SD, timestep_spacing="linspace")
    if count == 0:
        with pytest.raises(InvalidRequestError, match="leaves none"):
            partial_grid(grid, SD, strength=strength)
        return
    part = partial_grid(grid, SD, strength=strength)
    assert len(part) == count + 1
    if steps > 1:  # diffusers' single step of linspace starts at timestep 0
        assert SD.timestep(part[0]) == pytest.approx(float(timesteps[0]), abs=1e-2)


@given(
    schedules=st.tuples(schedules, schedules),
    steps=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    fraction=fractions,
    table=st.sampled_from([SD, SHORT]),
)
def test_one_model_ends_exactly_where_the_next_begins(
    schedules: tuple[str, str], steps: tuple[int, int], fraction: float, table: NoiseSchedule
) -> None:
    count = len(table.sigmas)
    cut = table.sigmas[min(round(count - fraction * count), count - 1)]
    first, second = (
        sigmas_for(s, min(n, 37), table) for s, n in zip(schedules, steps, strict=True)
    )
    if first[0] <= cut * (1 + 1e-9):
        with pytest.raises(InvalidRequestError, match="begins no higher"):
            partial_grid(first, table, denoising_end=fraction)
        return
    if first[-1] > cut * (1 + 1e-9):
        return
    base = partial_grid(first, table, denoising_end=fraction)
    assert base[-1] == cut
    assert (np.diff(base) < 0).all()
    assert np.isin(base[:-1], first).all()
    if second[-1] >= cut:
        return
    refiner = partial_grid(second, table, denoising_start=fraction)
    assert refiner[0] == cut
    assert (np.diff(refiner) < 0).all()
    assert np.isin(refiner[1:], second).all()
    assert refiner[-1] == second[-1]


@given(steps=st.integers(2, 60), fraction=fractions)
def test_together_they_run_the_whole_grid(steps: int, fraction: float) -> None:
    grid = sigmas_for("exponential", steps, SD)
    base = partial_grid(grid, SD, denoising_end=fraction)
    refiner = partial_grid(grid, SD, denoising_start=fraction)
    both = np.concatenate([base, refiner[1:]])
    assert (np.diff(both) < 0).all()
    missing = grid[~np.isin(grid, both)]
    assert all(np.isclose(sigma, base[-1], rtol=1e-8) for sigma in missing)


def test_a_cut_on_a_point_of_the_grid_adds_none() -> None:
    grid = sigmas_for("scheduler", 10, SD, timestep_spacing="trailing")
    base = partial_grid(grid, SD, denoising_end=0.3)  # timestep 700; the grid has 699 and 799
    assert len(base) == 4
    grid[3] = SD.sigmas[700]
    assert np.array_equal(partial_grid(grid, SD, denoising_end=0.3), grid[:4])
    assert np.array_equal(partial_grid(grid, SD, denoising_start=0.3), grid[3:])


def test_the_middle_of_a_run() -> None:
    grid = sigmas_for("karras", 20, SD)
    middle = partial_grid(grid, SD, denoising_start=0.2, denoising_end=0.6)
    assert (middle[0], middle[-1]) == (SD.sigmas[800], SD.sigmas[400])
    tail = partial_grid(grid, SD, strength=0.75, denoising_end=0.8)
    assert (tail[0], tail[-1]) == (grid[5], SD.sigmas[200])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0}, "strength must be above 0 and at most 1, not 0"),
        ({"strength": 1.01}, "strength must be above 0 and at most 1, not 1.01"),
        ({"strength": float("nan")}, "strength must be above 0"),
        ({"strength": "much"}, "strength must be above 0 and at most 1, not 'much'"),
        ({"strength": True}, "strength must be above 0"),
        ({"strength": 0.05}, "strength 0.05 of 5 steps leaves none; ask for at least 20 steps"),
        ({"strength": 0.5, "denoising_start": 0.5}, "both say where to begin; give one"),
        ({"denoising_start": 0}, "denoising_start must be between 0 and 1, not 0; leave it out"),
        ({"denoising_end": 1.0}, "denoising_end must be between 0 and 1, not 1.0"),
        ({"denoising_end": None, "denoising_start": "x"}, "denoising_start must be between"),
        ({"denoising_start": 0.5, "denoising_end": 0.5}, "must be above denoising_start"),
        ({"denoising_start": 0.6, "denoising_end": 0.5}, "not 0.5 after 0.6"),
        ({"denoising_end": 1e-5}, "is sigma 14.6146, and this grid begins no higher"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        partial_grid(sigmas_for("karras", 5, SD), SD, **arguments)


def test_a_grid_that_never_gets_there() -> None:
    with pytest.raises(InvalidRequestError, match="this grid ends before, at 5"):
        partial_grid([10.0, 5.0], SD, denoising_end=0.8)
    with pytest.raises(InvalidRequestError, match="this grid has nothing below that"):
        partial_grid([10.0, 5.0], SD, denoising_start=0.8)
