"""Convergence: the samplers solve the equations they claim to, at the order they claim.

Parity says that we agree with k-diffusion; this says that both are right (and where not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.sampling import SAMPLERS, NoiseSlot, Plan, sample
from tests.support.denoisers import flow, gaussian, mixture, unguided
from tests.support.plans import fixed_plan

HIGH, LOW = 10.0, 0.1


def graded(steps: int) -> list[float]:
    """A grid from HIGH to LOW whose first steps in ln σ shrink as 1/N², not 1/N.

    Multistep methods start with low-order steps, whose error would hide the order of the rest.
    """
    return [HIGH * (LOW / HIGH) ** ((index / steps) ** 2) for index in range(steps + 1)]


def even(steps: int) -> list[float]:
    """A grid from HIGH to LOW, even in ln σ."""
    return [HIGH * (LOW / HIGH) ** (index / steps) for index in range(steps + 1)]


def observed_order(coarse: float, fine: float) -> float:
    return math.log2(abs(coarse) / abs(fine))


@pytest.fixture(scope="module")
def start() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 2, generator=generator, dtype=torch.float64) * HIGH


@pytest.fixture(scope="module")
def exact_end(start: Tensor) -> Tensor:
    return flow(mixture, start, HIGH, LOW)


NO_DETERMINISTIC_FORM = ("ddpm", "lcm", "restart")


def without_noise(name: str) -> dict[str, Any]:
    """The options that make a sampler solve the probability flow."""
    if name == "er_sde":
        return {"solver_type": "ode"}
    return {"eta": 0.0} if "eta" in SAMPLERS[name].options else {}


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        *[("lms", {"order": order}, order) for order in (1, 2, 3)],
        *[("deis", {"order": order}, order) for order in (1, 2)],
        *[("ipndm", {"order": order}, min(order, 2)) for order in (1, 2, 3)],
        *[
            ("unipc", {"order": order, "solver_type": form}, order + 1)
            for order in (1, 2, 3)
            for form in ("bh1", "bh2")
        ],
        *[("sa_solver", {"order": order}, order + 1) for order in (1, 2)],
        ("er_sde", {"order": 1}, 1),
        ("er_sde", {"order": 2}, 2),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, 2),
        ("seeds_2", {"r": 0.7}, 2),
        ("seeds_2", {"r": 0.7, "solver_type": "phi_2"}, 2),
        *[
            (info.name, {}, info.order)
            for info in SAMPLERS.values()
            if info.name not in (*NO_DETERMINISTIC_FORM, "dpm_fast", "dpm_adaptive")
        ],
    ],
)
def test_order_of_convergence(
    start: Tensor, exact_end: Tensor, name: str, options: dict[str, Any], order: int
) -> None:
    options = {**without_noise(name), **options}
    coarse, fine = (
        flow_error(fixed_plan(name, graded(steps), **options), start, exact_end)
        for steps in (64, 128)
    )
    assert observed_order(coarse, fine) == pytest.approx(order, abs=0.15)


def flow_error(planned: Plan, start: Tensor, exact_end: Tensor) -> float:
    return (sample(planned, start, unguided(mixture)) - exact_end).norm().item()


@pytest.mark.parametrize(("rest", "order"), [(0, 2), (1, 2), (2, 3)])
def test_order_of_dpm_fast_hangs_on_its_last_steps(
    start: Tensor, exact_end: Tensor, rest: int, order: int
) -> None:
    """Third-order steps, but the last ones have the order that is left of the evaluations."""
    coarse, fine = (
        flow_error(fixed_plan("dpm_fast", even(3 * steps + rest)), start, exact_end)
        for steps in (128, 256)
    )
    assert observed_order(coarse, fine) == pytest.approx(order, abs=0.15)


def brownian_covariance(slots: Sequence[NoiseSlot]) -> Tensor:
    """Covariance of the draws of ``slots``: the overlap of their intervals, normalised."""
    lows = torch.tensor([slot.sigma_next for slot in slots], dtype=torch.float64)
    highs = torch.tensor([slot.sigma for slot in slots], dtype=torch.float64)
    overlap = torch.minimum(highs, highs[:, None]) - torch.maximum(lows, lows[:, None])
    lengths = highs - lows
    covariance = overlap.clamp(min=0) / (lengths * lengths[:, None]).sqrt()
    # An empty interval marks a draw that is independent of all others.
    return covariance.nan_to_num(0.0).fill_diagonal_(1.0)


def variance_error(name: str, steps: int, *, independent: bool = False, **options: Any) -> float:
    """Relative error of the variance at LOW for data N(0, 1), exactly and without sampling.

    The denoiser is linear, so the result is a linear map of the start and the draws. A batch of
    unit vectors, one for each of them, reads off its coefficients.
    """
    planned = fixed_plan(name, even(steps), **options)
    slots = len(planned.slots)
    start = torch.zeros(slots + 1, 1, dtype=torch.float64)
    start[-1] = 1
    noise = torch.eye(slots, slots + 1, dtype=torch.float64)[..., None]
    weights = sample(planned, start, gaussian(1.0), noise)[:, 0]
    covariance = brownian_covariance(planned.slots)
    if independent:
        covariance = torch.eye(slots, dtype=torch.float64)
    drawn = weights[:-1] @ covariance @ weights[:-1]
    variance = float(drawn + weights[-1] ** 2 * (1 + HIGH**2))
    return variance / (1 + LOW**2) - 1


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("euler_ancestral", {}, 1),
        ("dpm_2_ancestral", {}, 2),
        ("dpmpp_2s_ancestral", {}, 2),
        ("dpmpp_sde", {}, 2),
        ("dpmpp_2m_sde", {}, 2),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, 2),
        ("dpmpp_3m_sde", {}, 2),
        # At the start-up steps' expense: even steps, whose first is of first order.
        ("dpmpp_3m_sde_exact", {}, 2),
        ("sa_solver", {}, 2),
        ("sa_solver", {"s_tmin": 0.0, "s_tmax": math.inf, "eta": 0.8}, 2),
        ("seeds_2", {}, 2),
        ("seeds_2", {"r": 0.3, "eta": 0.5}, 2),
        ("seeds_2", {"solver_type": "phi_2"}, 2),
        ("seeds_3", {}, 2),
        ("exp_heun_2_x0", {"eta": 1.0}, 2),
        ("er_sde", {}, 2),
        ("er_sde", {"solver_type": "reverse_sde"}, 2),
        ("ddpm", {}, 1),
        ("ddim", {"eta": 0.6}, 1),
        ("restart", {}, 2),
    ],
)
def test_variance_of_stochastic_samplers_converges(
    name: str, options: dict[str, Any], order: int
) -> None:
    coarse, fine = (variance_error(name, steps, **options) for steps in (64, 128))
    assert observed_order(coarse, fine) == pytest.approx(order, abs=0.25)


def test_dpmpp_sde_needs_its_correlated_draws() -> None:
    assert abs(variance_error("dpmpp_sde", 16)) < 0.03
    assert variance_error("dpmpp_sde", 16, independent=True) < -0.15
    coarse, fine = (variance_error("dpmpp_sde", n, independent=True) for n in (64, 128))
    assert observed_order(coarse, fine) == pytest.approx(1, abs=0.25)
