"""Planners and their registry: names, options, the shape of plans, and refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from kdrt.errors import InvalidRequestError
from kdrt.sampling import SAMPLERS, NoiseSlot, find_sampler, make_plan
from kdrt.sampling.samplers import label_of, split_label
from tests.support.plans import fixed_plan

SIGMAS = [14.6, 3.0, 0.7, 0.03, 0.0]
NAMES = [name for name, info in SAMPLERS.items() if info.capturable]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("euler", "euler"),
        ("sample_euler", "euler"),
        ("k_euler", "euler"),
        ("Euler a", "euler_ancestral"),
        ("euler_a", "euler_ancestral"),
        ("k_euler_a", "euler_ancestral"),
        ("LMS", "lms"),
        ("DPM2", "dpm_2"),
        ("dpm2 a", "dpm_2_ancestral"),
        ("DPM++ 2S a", "dpmpp_2s_ancestral"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++_2m", "dpmpp_2m"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("dpmpp-3m-sde", "dpmpp_3m_sde"),
        ("DPM fast", "dpm_fast"),
        ("uni_pc", "unipc"),
        ("UniPC", "unipc"),
        ("dpmpp_sde_gpu", "dpmpp_sde"),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde"),
        ("Euler CFG++", "euler_cfg_pp"),
        ("seeds_3", "seeds_3"),
    ],
)
def test_names(spelling: str, name: str) -> None:
    assert find_sampler(spelling).name == name
    assert make_plan(spelling, SIGMAS) == make_plan(name, SIGMAS)


@pytest.mark.parametrize("name", NAMES)
def test_registry_is_consistent(name: str) -> None:
    info = SAMPLERS[name]
    # Long enough for every sampler to do all it can: restart does so from 20 steps.
    sigmas = [*np.geomspace(14.6, 0.03, 24), 0.0]
    planned = make_plan(name, sigmas)
    for spelling in (info.label, f"sample_{name}", *info.aliases):
        assert find_sampler(spelling) is info
    assert info.name == planned.sampler == name
    assert bool(planned.slots) is info.stochastic
    assert planned.evaluations == {"N": 24, "2N-1": 47, "3N-2": 70}[info.evaluations]
    assert planned.steps == (9 if name == "dpm_fast" else 24)
    assert make_plan(name, sigmas, **info.options) == planned
    assert planned.needs_unconditional is name.endswith("cfg_pp")
    with pytest.raises(TypeError):
        SAMPLERS[name] = info  # type: ignore[index]


def test_keys_of_names_are_distinct() -> None:
    """No label or alias hides another sampler."""
    spellings = [
        (spelling, info.name)
        for info in SAMPLERS.values()
        for spelling in (info.name, info.label, *info.aliases)
    ]
    assert all(find_sampler(spelling).name == name for spelling, name in spellings)


@pytest.mark.parametrize(
    ("spelling", "name", "options"),
    [
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde", {"solver_type": "heun"}),
        ("uni_pc_bh2", "unipc", {"solver_type": "bh2"}),
        ("res_multistep_ancestral", "res_multistep", {"eta": 1.0}),
        ("exp_heun_2_x0_sde", "exp_heun_2_x0", {"eta": 1.0}),
    ],
)
def test_names_that_imply_options(spelling: str, name: str, options: dict[str, Any]) -> None:
    assert (
        make_plan(spelling, SIGMAS) == make_plan(name, SIGMAS, **options) != make_plan(name, SIGMAS)
    )
    assert find_sampler(label_of(spelling, {})).name == name
    assert make_plan(label_of(spelling, {}), SIGMAS) == make_plan(spelling, SIGMAS)
    assert label_of(spelling, options) == SAMPLERS[name].label


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", {}, "karras")),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde", {"solver_type": "heun"}, "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", {}, "exponential")),
        ("dpm_2_ancestral", ("dpm_2_ancestral", {}, None)),
        ("Euler a", ("euler_ancestral", {}, None)),
        ("uni_pc_bh2_karras", ("unipc", {"solver_type": "bh2"}, "karras")),
    ],
)
def test_split_label(label: str, expected: tuple[str, dict[str, Any], str | None]) -> None:
    assert split_label(label) == expected


def test_a_label_with_a_schedule_is_no_sampler() -> None:
    message = "names a sampler and a schedule; give them apart, as 'dpmpp_2m' and 'karras'"
    with pytest.raises(InvalidRequestError, match=message):
        make_plan("DPM++ 2M Karras", SIGMAS)


@pytest.mark.parametrize("label", ["Karras", "DPM++ 2M Kurras", "Karras Euler", "", None])
def test_labels_that_cannot_be_split(label: Any) -> None:
    with pytest.raises(InvalidRequestError, match="unknown sampler"):
        split_label(label)


def test_what_is_kept_of_a_plan_does_not_cross_settings() -> None:
    """Plans are looked up by their settings: others must not be given."""
    grid = [14.0, 3.0, 0.5, 0.0]
    made = [
        make_plan("dpmpp_2m_sde", grid, **options)
        for options in ({}, {"eta": 0.5}, {"solver_type": "heun"}, {"eta": 0.5, "s_noise": 0.9})
    ]
    assert len(set(made)) == len(made)
    assert make_plan("DPM++ 2M SDE Heun", grid) == make_plan(
        "dpmpp_2m_sde", grid, solver_type="heun"
    )
    assert make_plan("dpmpp_2m_sde", [15.0, *grid[1:]]) != made[0]
    with pytest.raises(InvalidRequestError, match="eta"):
        make_plan("dpmpp_2m_sde", grid, eta=True)  # equals 1, which is looked up


def test_a_label_can_imply_an_option() -> None:
    heun = make_plan("dpmpp_2m_sde", SIGMAS, solver_type="heun")
    assert make_plan("DPM++ 2M SDE Heun", SIGMAS) == heun
    assert make_plan("DPM++ 2M SDE Heun", SIGMAS, solver_type="midpoint") != heun


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_well_formed(name: str) -> None:
    for sigmas in (SIGMAS, SIGMAS[:-1], SIGMAS[-2:], SIGMAS[:2], np.array(SIGMAS)):
        planned = fixed_plan(name, sigmas)
        assert sum(stage.ends_step for stage in planned.stages) == planned.steps
        assert planned.stages[-1].ends_step
        used = [stage.slot for stage in planned.stages if stage.slot is not None]
        assert used == list(range(len(planned.slots)))
        for count, stage in enumerate(planned.stages):
            numbers = (stage.sigma, stage.base, stage.noise, *stage.denoised)
            assert all(type(number) is float and math.isfinite(number) for number in numbers)
            assert stage.sigma > 0
            assert (stage.noise == 0) is (stage.slot is None)
            assert 1 <= len(stage.denoised) <= min(count + 1, planned.history)
            if not planned.residual:
                # A constant denoised image must be kept: the weights add up to 1.
                total = stage.base + sum(stage.denoised) + sum(stage.unconditional)
                assert total == pytest.approx(1, abs=1e-12)
            if stage.correction is not None:
                assert count > 0
                total = stage.correction.base + sum(stage.correction.denoised)
                assert total == pytest.approx(1, abs=1e-12)
                last = planned.stages[count - 1]
                assert (stage.correction.noise, stage.correction.slot) == (last.noise, last.slot)
        if sigmas[-1] == 0 and not planned.residual and planned.sigmas[-1] == 0:
            assert (planned.stages[-1].base, planned.stages[-1].denoised) == (0.0, (1.0,))


@pytest.mark.parametrize(
    ("name", "options", "history"),
    [
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("lms", {}, 4),
        ("lms", {"order": 2}, 2),
        ("dpmpp_2s_ancestral", {}, 1),
        ("dpmpp_sde", {}, 1),
        ("dpmpp_sde", {"r": 0.3}, 2),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_3m_sde", {}, 3),
        ("unipc", {}, 3),  # so few steps end with lower orders
        ("unipc", {"order": 1}, 2),
        ("seeds_3", {}, 3),
        ("lcm", {}, 1),
    ],
)
def test_history(name: str, options: dict[str, Any], history: int) -> None:
    assert fixed_plan(name, SIGMAS, **options).history == history


def test_noise_slots() -> None:
    assert make_plan("euler_ancestral", SIGMAS).slots == (
        NoiseSlot(14.6, 3.0),
        NoiseSlot(3.0, 0.7),
        NoiseSlot(0.7, 0.03),
    )
    sde = make_plan("dpmpp_sde", SIGMAS).slots
    assert [slot.sigma for slot in sde] == [14.6, 14.6, 3.0, 3.0, 0.7, 0.7]
    assert [slot.sigma_next for slot in sde[1::2]] == [3.0, 0.7, 0.03]
    assert [slot.sigma_next for slot in sde[::2]] == pytest.approx(
        [math.sqrt(slot.sigma * slot.sigma_next) for slot in sde[1::2]]
    )
    assert make_plan("dpmpp_sde", SIGMAS, eta=0.0).slots == ()
    assert make_plan("euler_ancestral", SIGMAS, s_noise=0.0).slots == ()


def test_churn_is_folded_into_the_stage_before() -> None:
    planned = fixed_plan("heun", SIGMAS, s_churn=4.0, s_tmin=0.5, s_tmax=20.0, s_noise=1.1)
    gamma = math.sqrt(2) - 1
    raised = [14.6 * (1 + gamma), 3.0 * (1 + gamma), 0.7 * (1 + gamma), 0.03]
    assert [stage.sigma for stage in planned.stages[::2]] == pytest.approx(raised)
    assert planned.initial_slot == 0
    # √(σ̂² - σ²) is σ itself at γ = √2 - 1.
    assert planned.initial_noise == pytest.approx(1.1 * 14.6)
    ends = [stage for stage in planned.stages if stage.ends_step]
    assert [stage.noise for stage in ends] == pytest.approx([1.1 * 3.0, 1.1 * 0.7, 0.0, 0.0])
    assert [stage.slot for stage in ends] == [1, 2, None, None]


@pytest.mark.parametrize("name", ["dpm_2_ancestral", "dpmpp_2s_ancestral", "euler_ancestral"])
def test_large_eta_keeps_the_noise_level(name: str) -> None:
    """Where eta leaves nothing to step down to, the next state is D plus noise of its σ."""
    planned = fixed_plan(name, [2.0, 1.0, 0.5], eta=3.0)
    for stage, sigma in zip(planned.stages, (1.0, 0.5), strict=True):
        assert (stage.base, stage.denoised, stage.noise) == (0.0, (1.0,), sigma)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Eular", "; did you mean 'euler'?"),
        ("heunpp2", "; did you mean 'heun'?"),
        ("", ""),
        ("sample_", ""),
        ("append_zero", ""),
        (None, ""),
    ],
)
def test_unknown_sampler(name: Any, near: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_plan(name, SIGMAS)
    assert str(caught.value) == f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}{near}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp_2m", {"eta": 0.5}, "dpmpp_2m has no option 'eta': it has no options"),
        ("Euler a", {"s_churn": 1}, "euler_ancestral has no option 's_churn': it accepts eta, s_n"),
        ("lms", {"eta": 1}, "lms has no option 'eta': it accepts order"),
        ("euler_a", {"eta": -0.1}, "eta of euler_ancestral must be a finite number of at least 0"),
        ("euler_a", {"eta": math.nan}, "eta of euler_ancestral must be a finite .*, not nan"),
        ("euler_a", {"eta": "1"}, "eta of euler_ancestral must be a finite number .*, not '1'"),
        ("euler_a", {"s_noise": math.inf}, "s_noise of euler_ancestral must be a finite number"),
        ("heun", {"s_churn": -1}, "s_churn of heun must be a finite number of at least 0, not -1"),
        ("heun", {"s_tmin": -1}, "s_tmin of heun must be a finite number of at least 0, not -1"),
        ("heun", {"s_tmax": -1}, r"s_tmax of heun must be a number of at least 0 \(or infinity\)"),
        ("lms", {"order": 0}, "order of lms must be 1, 2, 3 or 4, not 0"),
        ("lms", {"order": 5}, "order of lms must be 1, 2, 3 or 4, not 5"),
        ("lms", {"order": 2.0}, "order of lms must be 1, 2, 3 or 4, not 2.0"),
        ("unipc", {"order": 4}, "order of unipc must be 1, 2 or 3, not 4"),
        ("unipc", {"solver_type": "heun"}, "solver_type of unipc must be 'bh1' or 'bh2', not 'h"),
        ("lms", {"order": True}, "order of lms must be 1, 2, 3 or 4, not True"),
        ("tcd", {"eta": 1.1}, "eta of tcd must be from 0 to 1, not 1.1"),
        ("tcd", {"noise_schedule": 1}, "tcd has no option 'noise_schedule': it accepts eta, s_no"),
        ("dpmpp_sde", {"r": 0}, "r of dpmpp_sde must be above 0 and at most 1, not 0"),
        ("dpmpp_sde", {"r": 1.5}, "r of dpmpp_sde must be above 0 and at most 1, not 1.5"),
        (
            "dpmpp_2m_sde",
            {"solver_type": "euler"},
            "solver_type of dpmpp_2m_sde must be 'midpoint' or 'heun', not 'euler'",
        ),
    ],
)
def test_refused_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make_plan(name, SIGMAS, **options)


@pytest.mark.parametrize(
    ("name", "option", "least"),
    [
        *[("heun", option, 0) for option in ("s_churn", "s_tmin", "s_tmax", "s_noise")],
        *[("euler_a", "eta", 0), ("dpmpp_sde", "r", 1e-9)],
    ],
)
def test_options_begin_at_their_least_value(name: str, option: str, least: float) -> None:
    make_plan(name, SIGMAS, **{option: least})
    with pytest.raises(InvalidRequestError, match=f"{option} of"):
        make_plan(name, SIGMAS, **{option: -1e-9})


@pytest.mark.parametrize("name", ["ipndm", "deis"])
def test_a_last_step_to_zero_takes_the_denoised(name: str) -> None:
    """Extrapolating ε over the last step would leave noise of the steps before in the image."""
    planned = fixed_plan(name, SIGMAS)
    last = planned.stages[-1]
    assert SIGMAS[-1] == 0
    assert planned.residual  # the terms are x - D
    assert (last.base, last.denoised) == (1.0, (-1.0,))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "a grid needs at least two sigmas, one step; got 0"),
        ([1.0], "a grid needs at least two sigmas, one step; got 1"),
        ([1.0, -1.0], "sigmas must be finite and not negative"),
        ([math.nan, 1.0], "sigmas must be finite and not negative"),
        ([math.inf, 1.0], "sigmas must be finite and not negative"),
        ([1.0, 2.0], "sigmas must descend strictly, but number 2, 2, follows 1"),
        ([3.0, 1.0, 1.0, 0.0], "sigmas must descend strictly, but number 3, 1, follows 1"),
        ([1.0, 0.0, 0.0], "sigmas must descend strictly, but number 3, 0, follows 0"),
    ],
)
def test_refused_grids(sigmas: list[float], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make_plan("euler", sigmas)


def test_nothing_heavy_is_imported() -> None:
    """Beyond torch, which brings what it likes."""
    code = (
        "import sys, torch; before = set(sys.modules); import kdrt.sampling; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert not packages & {"torchsde", "scipy", "k_diffusion", "diffusers", "tqdm", "onnx"}
