"""Samplers that k-diffusion lacks, against other implementations and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from kdrt.sampling import NoiseSchedule, Plan, make_plan, sample, sigmas_for
from kdrt.sampling.samplers.integrals import exponential_weights
from tests.support.denoisers import mixture, rough, unguided
from tests.support.plans import fixed_plan

SHAPE = (2, 3, 4, 4)
DENOISE = rough(SHAPE[1])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run_diffusers(scheduler: Any, sigmas: list[float], x: Tensor) -> Tensor:
    """A diffusers scheduler on our grid: its state is x/√(1 + σ²), its model predicts ε."""
    scheduler.set_timesteps(len(sigmas) - 1)
    # Timesteps only have to be distinct: the scheduler looks up its place by them.
    scheduler.timesteps = torch.arange(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    for step, sigma in enumerate(sigmas[:-1]):
        scale = math.sqrt(1 + sigma**2)
        epsilon = (x - DENOISE(x, sigma)) / sigma
        state = scheduler.step(epsilon, scheduler.timesteps[step], x / scale).prev_sample
        x = state * math.sqrt(1 + sigmas[step + 1] ** 2)
    return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers, of NumPy 2
@pytest.mark.parametrize("steps", [2, 5, 14, 15, 18])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers(
    sd: NoiseSchedule, x: Tensor, order: int, solver_type: str, steps: int
) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=solver_type, lower_order_final=steps < 15
    )
    sigmas = sigmas_for("karras", steps + 1, sd).tolist()[:-1]
    x = x * sigmas[0]
    expected = run_diffusers(scheduler, sigmas, x)
    result = sample(fixed_plan("unipc", sigmas, order=order, solver_type=solver_type), x, DENOISE)
    # diffusers solves for the coefficients in float32.
    tolerance = 1e-5 if order == 3 else 2e-7
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_diffusers(sd: NoiseSchedule, x: Tensor, order: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, lower_order_final=False)
    sigmas = sigmas_for("karras", 12, sd).tolist()[:-1]
    x = x * sigmas[0]
    expected = run_diffusers(scheduler, sigmas, x)
    result = sample(fixed_plan("deis", sigmas, order=order), x, DENOISE)
    assert (result - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("h", [-3.0, -0.5, 1e-3, 0.3, 0.999, 1.0, 2.5, 12.0])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.7], [0.0, -1.3, -2.0], [0, -0.5, -2.5, 1.0]])
def test_weights_are_the_integrals_of_lagrange_polynomials(h: float, nodes: list[float]) -> None:
    def basis(j: int) -> Callable[[float], float]:
        others = [node for k, node in enumerate(nodes) if k != j]
        return lambda tau: math.prod((tau - other) / (nodes[j] - other) for other in others)

    for j, weight in enumerate(exponential_weights(h, nodes)):
        lagrange = basis(j)
        expected, _ = quad(
            lambda tau, p=lagrange: h * math.exp(-h * (1 - tau)) * p(tau), 0, 1, epsabs=1e-14
        )
        assert weight == pytest.approx(expected, rel=1e-11, abs=1e-14)


EXPONENTIAL_HEUN = {"r": 1.0, "solver_type": "phi_2"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {}), ("euler", {})),
        (("ddim", {"eta": 0.7}), ("euler_ancestral", {"eta": 0.7})),
        (("ddpm", {}), ("ddim", {"eta": 1.0})),
        (("tcd", {"eta": 0.0}), ("euler", {})),
        (("ddpm", {"s_noise": 0.9}), ("euler_ancestral", {"s_noise": 0.9})),
        (("res_multistep", {}), ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"})),
        (("exp_heun_2_x0", {"eta": 0.4}), ("seeds_2", {"eta": 0.4, **EXPONENTIAL_HEUN})),
        (("seeds_2", {"eta": 0.0}), ("dpmpp_sde", {"eta": 0.0})),
        (("deis", {"order": 1}), ("ipndm", {"order": 1})),
        (("deis", {"order": 1}), ("lms", {"order": 1})),
        (("er_sde", {"order": 1, "solver_type": "ode"}), ("euler", {})),
        (("er_sde", {"order": 1, "solver_type": "reverse_sde"}), ("ddpm", {})),
        (("restart", {}), ("heun", {})),  # below 20 steps
        (("euler_cfg_pp", {}), ("euler", {})),
        (("euler_ancestral_cfg_pp", {"eta": 0.6}), ("euler_ancestral", {"eta": 0.6})),
        (("dpmpp_2m_cfg_pp", {}), ("dpmpp_2m", {})),
    ],
)
def test_samplers_that_meet(
    sd: NoiseSchedule, x: Tensor, one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]
) -> None:
    """Two formulas of one method; CFG++ where the result without guidance is the guided one."""
    sigmas = sigmas_for("karras", 9, sd)
    x = x * sigmas[0]
    results = []
    for name, options in (one, other):
        planned = fixed_plan(name, sigmas, **options)
        generator = torch.Generator().manual_seed(5)
        shape = (len(planned.slots), *SHAPE)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        results.append(sample(planned, x, unguided(DENOISE), noise))
    assert (results[0] - results[1]).abs().max() <= 1e-12 * results[1].abs().max()


def vp_ddim_step(x: Tensor, denoised: Tensor, s: float, t: float, eta: float, xi: Tensor) -> Tensor:
    """Song et al. 2021, equations 12 and 16, in the paper's variance-preserving terms."""
    a_s, a_t = 1 / (1 + s * s), 1 / (1 + t * t)
    state = x * math.sqrt(a_s)
    epsilon = (state - math.sqrt(a_s) * denoised) / math.sqrt(1 - a_s)
    deviation = eta * math.sqrt((1 - a_t) / (1 - a_s)) * math.sqrt(1 - a_s / a_t)
    mean = math.sqrt(a_t) * denoised + math.sqrt(1 - a_t - deviation**2) * epsilon
    return (mean + deviation * xi) / math.sqrt(a_t)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_papers(x: Tensor, eta: float) -> None:
    s, t = 3.0, 1.2
    xi = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = vp_ddim_step(x, DENOISE(x, s), s, t, eta, xi)
    planned = fixed_plan("ddim", [s, t], eta=eta)
    noise = xi[None] if planned.slots else None
    torch.testing.assert_close(sample(planned, x, DENOISE, noise), expected, rtol=0, atol=1e-13)


def heun_with_restarts(sigmas: list[tuple[float, float]], x: Tensor, noise: Tensor) -> Tensor:
    """Heun over (from, to) pairs; where one starts above the end of the last, noise lifts it."""
    draws = iter(noise)
    last = sigmas[0][0]
    for s, t in sigmas:
        if s > last:
            x = x + next(draws) * math.sqrt(s * s - last * last)
        slope = (x - DENOISE(x, s)) / s
        predicted = x + (t - s) * slope
        if t > 0:
            slope = (slope + (predicted - DENOISE(predicted, t)) / t) / 2
        x = x + (t - s) * slope
        last = t
    return x


@pytest.mark.parametrize(("steps", "again", "times"), [(20, 9, 1), (35, 9, 1), (40, 10, 2)])
def test_restart_is_heun_on_the_web_uis_list(
    sd: NoiseSchedule, x: Tensor, steps: int, again: int, times: int
) -> None:
    sigmas = sigmas_for("karras", steps, sd)
    main = sigmas_for("karras", steps - again * times, sd)
    low = int(abs(main - 0.1).argmin())
    high = int(abs(main - 2.0).argmin())
    inner = sigmas_for("karras", again + 1, sd, sigma_min=main[low], sigma_max=main[high])[:-1]
    pairs = list(pairwise(main[: low + 1]))
    pairs += list(pairwise(inner)) * times
    pairs += list(pairwise(main[low:]))
    pairs = [(float(s), float(t)) for s, t in pairs]

    planned = fixed_plan("restart", sigmas)
    assert planned.steps == len(pairs) == steps
    assert len(planned.slots) == times
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn((times, *SHAPE), generator=generator, dtype=torch.float64)
    x = x * sigmas[0]
    expected = heun_with_restarts(pairs, x, noise)
    result = sample(planned, x, DENOISE, noise)
    assert (result - expected).abs().max() <= 1e-12 * expected.abs().max()
    # The grid of the plan tells where the state is: it rises once a restart.
    rises = sum(b > a for a, b in pairwise(planned.sigmas))
    assert rises == times


def test_restart_needs_a_range_to_restart_in(sd: NoiseSchedule) -> None:
    sigmas = sigmas_for("karras", 24, sd, sigma_min=3.0)
    planned: Plan = fixed_plan("restart", sigmas)
    assert planned.slots == ()
    assert planned.sigmas == tuple(sigmas)


def test_lcm_jumps(x: Tensor) -> None:
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(1)).double()
    result = sample(fixed_plan("lcm", [5.0, 2.0], s_noise=0.8), x, DENOISE, noise)
    torch.testing.assert_close(result, DENOISE(x, 5.0) + 0.8 * 2.0 * noise[0], rtol=0, atol=1e-13)


def test_cfg_pp_takes_the_noise_from_the_unguided_result() -> None:
    """Two steps of each with U far from D, restated with tensors."""

    class Denoise:
        def __call__(self, x: Tensor, sigma: float) -> Tensor:
            self.unconditional = mixture(x, sigma)
            return 2 * mixture(x, sigma) - 0.3

    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8
    denoise = Denoise()
    s, m, t = 8.0, 3.0, 1.0
    d_1, u_1 = denoise(x, s), denoise.unconditional
    second = d_1 + m * (x - u_1) / s
    d_2, u_2 = denoise(second, m), denoise.unconditional
    euler = d_2 + t * (second - u_2) / m
    torch.testing.assert_close(sample(fixed_plan("euler_cfg_pp", [s, m, t]), x, denoise), euler)
    h, h_last = math.log(m / t), math.log(s / m)
    multistep = euler + (1 - t / m) * h / (2 * h_last) * (d_2 - u_1)
    torch.testing.assert_close(
        sample(fixed_plan("dpmpp_2m_cfg_pp", [s, m, t]), x, denoise), multistep
    )


def tcd_of_diffusers(
    timesteps: list[int], eta: float, x: Tensor, table: NoiseSchedule
) -> tuple[Tensor, list[float]]:
    """diffusers' TCDScheduler with a table in x's precision; and the grid that it walks.

    Its last step goes to timestep 0, not to σ = 0.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.TCDScheduler()
    scheduler.alphas_cumprod = torch.from_numpy(1 / (1 + table.sigmas**2)).to(x.dtype)
    scheduler.set_timesteps(timesteps=timesteps)
    generator = torch.Generator().manual_seed(3)
    grid = [float(table.sigmas[t]) for t in (*timesteps, 0)]
    denoise = rough(x.shape[1], x.dtype)
    for timestep, (s, t) in zip(scheduler.timesteps, pairwise(grid), strict=True):
        epsilon = (x - denoise(x, s)) / s
        state = x / math.sqrt(1 + s * s)
        step = scheduler.step(epsilon, timestep, state, eta=eta, generator=generator)
        x = step.prev_sample * math.sqrt(1 + t * t)
    return x, grid


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(
    "timesteps",
    [
        [799],
        [999, 499],
        [999, 759, 499, 259],  # TCDScheduler's own for 4 steps
        [999, 749, 499, 249],
        list(range(999, 0, -20)),
    ],
)
def test_tcd_equals_diffusers(
    sd: NoiseSchedule, timesteps: list[int], eta: float, dtype: torch.dtype, tolerance: float
) -> None:
    shape = (2, 3, 5, 7)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    start = start * float(sd.sigmas[timesteps[0]])
    expected, grid = tcd_of_diffusers(timesteps, eta, start, sd)
    plan = make_plan("tcd", grid, sd, eta=eta)
    assert isinstance(plan, Plan)
    assert len(plan.slots) == (len(timesteps) - 1 if eta else 0)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(shape, generator=generator, dtype=dtype) for _ in plan.slots]
    drawn = torch.stack(noise) if noise else None
    result = sample(plan, start, rough(shape[1], dtype), drawn)
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def test_tcd_goes_by_the_models_own_timesteps(sd: NoiseSchedule) -> None:
    linear = NoiseSchedule.from_betas(0.0001, 0.02, "linear")
    grid = [10.0, 2.0, 0.0]
    assert make_plan("tcd", grid) == make_plan("tcd", grid, sd) != make_plan("tcd", grid, linear)
    first = fixed_plan("tcd", grid, eta=0.4).stages[0]
    jumped_to = first.base * 10.0
    assert jumped_to == sd.sigmas[math.floor(0.6 * sd.timestep(2.0))]
    assert math.hypot(jumped_to, first.noise) == pytest.approx(2.0)
    # Below the lowest level there is no timestep to go past.
    assert fixed_plan("tcd", [1.0, 0.01, 0.0]).slots == ()
