"""dpm_adaptive: the image of k-diffusion, one image at a time, one read-back a try."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError, NonFiniteError
from kdrt.sampling import AdaptivePlan, AdaptiveStep, SeededNoise, make_plan, run, sample
from tests.support.denoisers import flow, gaussian, mixture, rough
from tests.support.operators import OperatorRecorder

GRID = [14.6, 5.0, 1.0, 0.03, 0.0]
SHAPE = (1, 3, 4, 4)


@pytest.fixture
def double() -> Iterator[None]:
    """k-diffusion puts its sigmas into tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 2},
        {"rtol": 1e-3, "atol": 1e-4},
        {"order": 2, "rtol": 0.01, "pcoeff": 0.2, "icoeff": 0.7, "dcoeff": 0.1},
        {"h_init": 3.0, "accept_safety": 0.9},
        {"eta": 1.0},
        {"eta": 0.5, "s_noise": 0.9, "order": 2},
    ],
)
@pytest.mark.usefixtures("double")
def test_equals_k_diffusion(kd: ModuleType, options: dict[str, Any]) -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 14.6
    denoise = rough(SHAPE[1])

    def draws() -> Any:
        generator = torch.Generator().manual_seed(2)
        return lambda *_: torch.randn(SHAPE, generator=generator)

    expected, info = kd.sample_dpm_adaptive(
        lambda x, sigma: denoise(x, float(sigma[0])),
        *(x, 0.03, 14.6),
        disable=True,
        noise_sampler=draws(),
        return_info=True,
        **options,
    )
    draw = draws()
    steps = [
        (step.latents.clone(), step)
        for step in run(make_plan("dpm_adaptive", GRID, **options), x, denoise, lambda _: draw()[0])
    ]
    result, last = steps[-1]
    assert isinstance(last, AdaptiveStep)
    assert (result - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert len(steps) == info["n_accept"]
    assert last.rejected == info["n_reject"]
    # After a rejected try the start of the step is not evaluated again.
    assert last.evaluations == info["nfe"] - info["n_reject"]
    if options.get("h_init"):
        assert last.rejected > 0


def test_meets_its_tolerance() -> None:
    x = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    exact = flow(mixture, x, 10.0, 0.1)
    errors = [
        (
            sample(make_plan("dpm_adaptive", [10.0, 0.1], rtol=rtol, atol=rtol), x, mixture) - exact
        ).norm()
        for rtol in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[0] < 0.05
    assert errors[1] < 5e-4
    assert errors[2] < 5e-6


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_an_image_does_not_depend_on_its_batch(eta: float) -> None:
    planned = make_plan("dpm_adaptive", GRID, eta=eta)

    def images(seeds: list[int]) -> Tensor:
        source = SeededNoise(seeds, (3, 5, 7))
        latents = source.latents() * GRID[0]
        return sample(planned, latents, rough(3, torch.float32), source.another)

    batch = images([3, 4, 5])
    for index, seed in enumerate([3, 4, 5]):
        assert torch.equal(images([seed])[0], batch[index])


def test_yields_the_steps_of_every_image() -> None:
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * GRID[0]
    before = latents.clone()
    seen = []
    for step in run(make_plan("dpm_adaptive", GRID), latents, rough(3, torch.float32)):
        assert isinstance(step, AdaptiveStep)
        state = step.latents.clone()
        seen.append((step.index, step.image, step.sigma, step.sigma_next, state))
    assert torch.equal(latents, before)
    assert [step[0] for step in seen] == list(range(len(seen)))
    for image in (0, 1):
        own = [step for step in seen if step[1] == image]
        assert own[0][2] == pytest.approx(14.6)
        assert own[-1][3] == pytest.approx(0.03, rel=2e-5)
        assert all(a[3] == b[2] for a, b in pairwise(own))
        others = [step[4][1 - image] for step in own]
        assert all(torch.equal(other, others[0]) for other in others)


def test_one_read_back_a_try() -> None:
    latents = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * GRID[0]
    with OperatorRecorder() as recorder:
        *_, last = run(make_plan("dpm_adaptive", GRID, h_init=3.0), latents, gaussian(0.5))
    assert isinstance(last, AdaptiveStep)
    assert last.rejected > 0
    tries = last.index + 1 + last.rejected
    assert recorder.names.count("aten._local_scalar_dense.default") == tries


@pytest.mark.parametrize("sigmas", [[2.0, 0.0], [2.0, 2.0 - 1e-6, 0.0]])
def test_nothing_to_solve_returns_the_denoised(sigmas: list[float]) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    steps = list(run(make_plan("dpm_adaptive", sigmas), x, gaussian(0.5)))
    assert len(steps) == 2
    torch.testing.assert_close(steps[-1].latents, gaussian(0.5)(x, 2.0))


def test_the_denoiser_may_reuse_its_result() -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 14.6
    fresh = rough(3, torch.float32)
    buffer = torch.empty(SHAPE)
    planned = make_plan("dpm_adaptive", GRID, h_init=2.0)
    reused = sample(planned, x, lambda x, s: buffer.copy_(fresh(x, s)))
    assert torch.equal(reused, sample(planned, x, fresh))


def test_refusals() -> None:
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match="needs a function that draws an image's noise"):
        run(make_plan("dpm_adaptive", GRID, eta=1.0), x, gaussian(1.0))
    with pytest.raises(ValueError, match="needs its noise drawn before the run"):
        run(make_plan("euler", GRID), x, gaussian(1.0), lambda image: x)
    with pytest.raises(NonFiniteError, match="not finite"):
        sample(make_plan("dpm_adaptive", GRID), x, lambda x, s: x * math.nan)


def test_tolerances_that_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdrt.sampling.adaptive._MAX_TRIES", 30)
    planned = make_plan("dpm_adaptive", GRID, rtol=1e-9, atol=1e-9)
    with pytest.raises(
        InvalidRequestError, match="cannot meet rtol=1e-09 and atol=1e-09 in 30 tries"
    ):
        sample(planned, torch.ones(1, 3), gaussian(1.0))


def test_a_plan_without_stages() -> None:
    planned = make_plan("DPM adaptive", GRID, order=2)
    assert isinstance(planned, AdaptivePlan)
    assert planned.evaluations is None
    assert planned.slots == ()
    assert not planned.needs_unconditional
    assert (planned.steps, planned.sigmas) == (4, tuple(GRID))
    assert (planned.highest, planned.lowest) == (14.6, 0.03)
