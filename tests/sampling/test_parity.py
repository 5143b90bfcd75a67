"""Every sampler against k-diffusion's own, with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdrt.sampling import BrownianNoise, NoiseSchedule, Plan, sample, sigmas_for
from tests.support.denoisers import rough
from tests.support.plans import fixed_plan

CASES: list[tuple[str, dict[str, Any]]] = [
    ("euler", {}),
    ("heun", {}),
    ("dpm_2", {}),
    *[
        (name, options)
        for name in ("euler", "heun", "dpm_2")
        for options in (
            {"s_churn": 3.0},
            {"s_churn": 100.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.1},
        )
    ],
    *[("lms", {"order": order}) for order in (1, 2, 3, 4)],
    *[
        (name, options)
        for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
        for options in ({}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.9})
    ],
    *[
        ("dpmpp_sde", options)
        for options in ({}, {"eta": 0.0}, {"eta": 0.5}, {"r": 0.3}, {"r": 1.0, "s_noise": 0.9})
    ],
    ("dpmpp_2m", {}),
    *[
        ("dpmpp_2m_sde", {"solver_type": solver, **options})
        for solver in ("midpoint", "heun")
        for options in ({}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.9})
    ],
    *[("dpmpp_3m_sde", options) for options in ({}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.9})],
]
IDS = ["-".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in CASES]
CRASH_UPSTREAM_IN_ONE_STEP = ("dpmpp_2m_sde", "dpmpp_3m_sde")
SHAPE = (2, 3, 4, 4)


class TorchWithFedNoise:
    """Stands in for ``torch`` inside k-diffusion's module, to feed the noise of churn."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = iter(draws)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn_like(self, x: Tensor) -> Tensor:
        return next(self._draws)


def noise_for(planned: Plan, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A draw for every slot; the same one for slots of the same interval (dpmpp_sde with r = 1)."""
    slots = planned.slots
    noise = torch.randn((len(slots), *SHAPE), generator=generator, dtype=dtype)
    for index in range(1, len(slots)):
        if slots[index - 1].sigma == slots[index].sigma and math.isclose(
            slots[index - 1].sigma_next, slots[index].sigma_next
        ):
            noise[index] = noise[index - 1]
    return noise


def run_upstream(
    kd: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    planned: Plan,
    sigmas: Tensor,
    x: Tensor,
    denoise: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """k-diffusion's result, with ``noise[k]`` wherever it asks for the noise of slot k."""

    def noise_of(sigma: float, sigma_next: float) -> Tensor:
        for slot, draw in zip(planned.slots, noise, strict=True):
            pairs = ((slot.sigma, sigma), (slot.sigma_next, sigma_next))
            if all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs):
                return draw
        # What k-diffusion draws and multiplies by 0 has no slot.
        return torch.zeros_like(x)

    arguments = dict(options)
    if planned.sampler in ("euler", "heun", "dpm_2"):
        draws = [noise_of(float(sigma), float(sigma)) for sigma in sigmas[:-1]]
        monkeypatch.setattr(kd, "torch", TorchWithFedNoise(draws))
    elif "ancestral" in planned.sampler or "sde" in planned.sampler:
        arguments["noise_sampler"] = lambda s, t: noise_of(float(s), float(t))
    sampler = getattr(kd, f"sample_{planned.sampler}")
    model = lambda x, sigma: denoise(x, float(sigma[0]))  # noqa: E731
    return sampler(model, x, sigmas, disable=True, **arguments)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_equals_k_diffusion_in_float64(
    kd: ModuleType,
    sd: NoiseSchedule,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
) -> None:
    denoise = rough(SHAPE[1])
    generator = torch.Generator().manual_seed(0)
    for schedule in ("karras", "exponential"):
        for steps in (1, 2, 3, 7, 20):
            if steps == 1 and name in CRASH_UPSTREAM_IN_ONE_STEP:
                continue
            full = sigmas_for(schedule, steps, sd)
            for sigmas in (full, full[:-1])[: 1 if steps == 1 else 2]:
                planned = fixed_plan(name, sigmas, **options)
                x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * sigmas[0]
                noise = noise_for(planned, generator, torch.float64)
                expected = run_upstream(
                    kd, monkeypatch, planned, torch.tensor(sigmas), x, denoise, noise, options
                )
                result = sample(planned, x, denoise, noise)
                error = (result - expected).abs().max() / expected.abs().max()
                assert error <= 1e-12, f"{schedule}, {steps} steps: {error:.1e}"


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"eta": 0.5, "s_noise": 0.9}])
def test_dpm_fast_equals_k_diffusion_in_float64(
    kd: ModuleType, sd: NoiseSchedule, options: dict[str, float]
) -> None:
    """Given the ends of our grid and as many evaluations as it has steps."""
    denoise = rough(SHAPE[1])
    generator = torch.Generator().manual_seed(0)
    # k-diffusion puts its sigmas into tensors of the default dtype.
    torch.set_default_dtype(torch.float64)
    try:
        for steps in (2, 3, 4, 5, 6, 20):
            for sigmas in (sigmas_for("karras", steps, sd), sigmas_for("vp", steps, sd)[:-1]):
                planned = fixed_plan("dpm_fast", sigmas, **options)
                assert planned.evaluations == len(sigmas) - 1
                x = torch.randn(SHAPE, generator=generator) * sigmas[0]
                noise = noise_for(planned, generator, torch.float64)
                draws = dict(zip([slot.sigma for slot in planned.slots], noise, strict=True))

                def noise_sampler(sigma: Tensor, _: Tensor, draws: Any = draws) -> Tensor:
                    known = [d for s, d in draws.items() if math.isclose(s, float(sigma))]
                    return known[0] if known else torch.zeros(SHAPE)

                expected = kd.sample_dpm_fast(
                    lambda x, sigma: denoise(x, float(sigma[0])),
                    *(x, float(sigmas[sigmas > 0][-1]), float(sigmas[0]), len(sigmas) - 1),
                    disable=True,
                    noise_sampler=noise_sampler,
                    **options,
                )
                error = (sample(planned, x, denoise, noise) - expected).abs().max()
                assert error <= 1e-12 * expected.abs().max()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_is_close_to_k_diffusion_in_float32(
    kd: ModuleType,
    sd: NoiseSchedule,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
) -> None:
    denoise = rough(SHAPE[1], torch.float32)
    generator = torch.Generator().manual_seed(0)
    sigmas = sigmas_for("karras", 20, sd)
    planned = fixed_plan(name, sigmas, **options)
    x = torch.randn(SHAPE, generator=generator) * float(sigmas[0])
    noise = noise_for(planned, generator, torch.float32)
    grid = torch.tensor(sigmas, dtype=torch.float32)
    expected = run_upstream(kd, monkeypatch, planned, grid, x, denoise, noise, options)
    result = sample(planned, x, denoise, noise)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= 1e-5 * sigmas[0]


ROUND_MORE = {"heun": 1.5, "dpm_2": 1.5, "dpm_2_ancestral": 1.5, "lms": 1.6}
"""Written in D alone, their steps add up larger terms of opposite signs than in slopes."""


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_float32_is_as_close_to_float64_as_k_diffusion(
    kd: ModuleType,
    sd: NoiseSchedule,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
) -> None:
    """Or closer; samplers in ln σ, which compute their coefficients in float32 there, by up to
    half. The denoiser is exact, so that what is measured is the sampler."""
    exact = rough(SHAPE[1])
    generator = torch.Generator().manual_seed(0)
    sigmas = sigmas_for("karras", 20, sd)
    planned = fixed_plan(name, sigmas, **options)
    grid = torch.tensor(sigmas, dtype=torch.float32)
    ours, theirs = 0.0, 0.0
    for _ in range(16):
        x = torch.randn(SHAPE, generator=generator) * float(sigmas[0])
        noise = noise_for(planned, generator, torch.float32)
        truth = sample(planned, x.double(), exact, noise.double())
        result = sample(planned, x, lambda x, s: exact(x.double(), s).float(), noise)
        upstream = run_upstream(
            *(kd, monkeypatch, planned, grid, x),
            lambda x, s: exact(x.double(), s).float(),
            *(noise, options),
        )
        ours += float((result - truth).square().sum())
        theirs += float((upstream - truth).square().sum())
    assert math.sqrt(ours / theirs) <= ROUND_MORE.get(name, 1.05)


@pytest.mark.parametrize("name", CRASH_UPSTREAM_IN_ONE_STEP)
def test_one_step_crashes_upstream(kd: ModuleType, name: str) -> None:
    """If this fails, upstream was mended and parity should cover one step."""
    sampler = getattr(kd, f"sample_{name}")
    with pytest.raises(UnboundLocalError):
        sampler(lambda x, s: x, torch.ones(1, 1), torch.tensor([1.0, 0.0]), disable=True)


@pytest.mark.filterwarnings("ignore:Should have t")  # torchsde, of its own rounding
@pytest.mark.parametrize("seeds", [7, [7, 8]])
def test_brownian_increments_are_bit_equal(kd: ModuleType, seeds: int | list[int]) -> None:
    sigmas = np.array([14.6, 3.0, 0.7, 0.03], np.float32).astype(np.float64)
    slots = fixed_plan("euler_ancestral", sigmas).slots
    drawn = BrownianNoise(SHAPE, seeds, sigmas[-1], sigmas[0]).draw(slots)
    oracle = kd.BrownianTreeNoiseSampler(
        torch.zeros(SHAPE), torch.tensor(sigmas[-1]), torch.tensor(sigmas[0]), seeds
    )
    assert drawn.dtype == torch.float32
    for slot, draw in zip(slots, drawn, strict=True):
        expected = oracle(
            torch.tensor(slot.sigma, dtype=torch.float32),
            torch.tensor(slot.sigma_next, dtype=torch.float32),
        )
        assert torch.equal(draw, expected)


@pytest.mark.filterwarnings("ignore:Should have t")
@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"])
def test_brownian_noise_gives_the_image_of_k_diffusion(
    kd: ModuleType, sd: NoiseSchedule, name: str
) -> None:
    grid = torch.tensor(sigmas_for("karras", 6, sd), dtype=torch.float32)
    sigmas = [float(sigma) for sigma in grid]
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    denoise = rough(SHAPE[1], torch.float32)
    planned = fixed_plan(name, sigmas)
    noise = BrownianNoise(SHAPE, [3, 4], sigmas[-2], sigmas[0]).draw(planned.slots)
    sampler = kd.BrownianTreeNoiseSampler(x, grid[-2], grid[0], [3, 4])
    expected = getattr(kd, f"sample_{name}")(
        lambda x, s: denoise(x, float(s[0])), x, grid, disable=True, noise_sampler=sampler
    )
    # dpmpp_sde asks for σ recomputed through float32 exp and log; the path is rough at an ulp.
    tolerance = 1e-3 if name == "dpmpp_sde" else 1e-5
    assert (sample(planned, x, denoise, noise) - expected).abs().max() <= tolerance * sigmas[0]
