"""The loop: what it yields, what it leaves alone, and what it never does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.sampling import (
    SAMPLERS,
    NoiseSchedule,
    Plan,
    SeededNoise,
    run,
    sample,
    sigmas_for,
)
from tests.support.denoisers import gaussian, rough, unguided
from tests.support.operators import OperatorRecorder
from tests.support.plans import fixed_plan

NAMES = [name for name, info in SAMPLERS.items() if info.capturable]
SHAPE = (2, 4, 4, 4)
EVERY_SAMPLER_AND_CHURN: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES] + [
    (name, {"s_churn": 4.0}) for name in ("euler", "heun", "dpm_2")
]


def prepared(
    sd: NoiseSchedule, name: str, steps: int = 6, **options: Any
) -> tuple[Plan, Tensor, Tensor]:
    """A plan with its latents and noise, float32."""
    sigmas = sigmas_for("karras", steps, sd)
    planned = fixed_plan(name, sigmas, **options)
    source = SeededNoise(range(SHAPE[0]), SHAPE[1:])
    return planned, source.latents() * float(sigmas[0]), source.draw(planned.slots)


def silent(name: str) -> dict[str, Any]:
    """Options with which a sampler adds no noise."""
    options = SAMPLERS[name].options
    return {option: 0.0 for option in ("eta", "s_noise") if option in options}


def ends_in_denoised(planned: Plan) -> bool:
    """Whether the last state is D itself, and not x - (x - D) or one that is short of σ = 0."""
    return planned.sigmas[-1] == 0 and not planned.residual


@pytest.mark.parametrize(("name", "options"), EVERY_SAMPLER_AND_CHURN)
def test_yields_every_step(sd: NoiseSchedule, name: str, options: dict[str, Any]) -> None:
    planned, latents, noise = prepared(sd, name, **options)
    before = latents.clone()
    seen: list[Tensor] = []

    @unguided
    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return rough(4, torch.float32)(x, sigma)

    steps = [
        (step.index, step.sigma, step.sigma_next, step.latents.clone(), step.denoised.clone())
        for step in run(planned, latents, denoise, noise)
    ]
    assert torch.equal(latents, before)
    assert [step[0] for step in steps] == list(range(planned.steps))
    assert [step[1] for step in steps] == list(planned.sigmas[:-1])
    assert [step[2] for step in steps] == list(planned.sigmas[1:])
    assert len(seen) == planned.evaluations
    assert all(x is not latents for x in seen)
    final = sample(planned, latents, unguided(rough(4, torch.float32)), noise)
    assert torch.equal(final, steps[-1][3])
    assert final.dtype == torch.float32
    if ends_in_denoised(planned):
        assert torch.equal(final, steps[-1][4])  # a step to 0 returns D


@pytest.mark.parametrize("name", NAMES)
def test_one_step_returns_the_denoised(sd: NoiseSchedule, name: str) -> None:
    planned, latents, noise = prepared(sd, name, steps=1)
    assert planned.evaluations == 1
    assert planned.slots == ()
    expected = rough(4, torch.float32)(latents, planned.sigmas[0])
    for given in (None, noise):
        result = sample(planned, latents, unguided(rough(4, torch.float32)), given)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6 * planned.sigmas[0])


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(sd: NoiseSchedule, name: str) -> None:
    planned, latents, noise = prepared(sd, name, steps=2)
    assert planned.evaluations == {"N": 2, "2N-1": 3, "3N-2": 4}[SAMPLERS[name].evaluations]
    *_, last = run(planned, latents, unguided(gaussian(1.0)), noise)
    assert last.latents.isfinite().all()
    if ends_in_denoised(planned):
        assert torch.equal(last.latents, last.denoised)


@pytest.mark.parametrize(("name", "options"), EVERY_SAMPLER_AND_CHURN)
def test_the_denoiser_may_reuse_its_result(
    sd: NoiseSchedule, name: str, options: dict[str, Any]
) -> None:
    planned, latents, noise = prepared(sd, name, **options)
    fresh = rough(4, torch.float32)
    buffer = torch.empty(SHAPE)
    into_buffer = unguided(lambda x, s: buffer.copy_(fresh(x, s)))
    reused = sample(planned, latents, into_buffer, noise)
    assert torch.equal(reused, sample(planned, latents, unguided(fresh), noise))


@pytest.mark.parametrize(("name", "options"), EVERY_SAMPLER_AND_CHURN)
def test_an_image_does_not_depend_on_its_batch(
    sd: NoiseSchedule, name: str, options: dict[str, Any]
) -> None:
    sigmas = sigmas_for("karras", 5, sd)
    planned = fixed_plan(name, sigmas, **options)

    def images(seeds: list[int]) -> Tensor:
        source = SeededNoise(seeds, (4, 8, 8))
        latents = source.latents() * float(sigmas[0])
        return sample(planned, latents, unguided(gaussian(0.7)), source.draw(planned.slots))

    batch = images([3, 4, 5])
    for index, seed in enumerate([3, 4, 5]):
        assert torch.equal(images([seed])[0], batch[index])


@pytest.mark.parametrize(("name", "options"), EVERY_SAMPLER_AND_CHURN)
def test_the_loop_neither_reads_back_nor_allocates(
    sd: NoiseSchedule, name: str, options: dict[str, Any]
) -> None:
    planned, latents, noise = prepared(sd, name, **options)
    buffer = torch.zeros(SHAPE)
    addresses = set()

    @unguided
    def denoise(x: Tensor, sigma: float) -> Tensor:
        addresses.add(x.data_ptr())
        return buffer  # no operator of its own

    with OperatorRecorder() as recorder:
        steps = run(planned, latents, denoise, noise)
        next(steps)
        recorder.allocating.clear()
        after_first = len(recorder.names)
        for step in steps:
            addresses.add(step.latents.data_ptr())
    assert "aten._local_scalar_dense.default" not in recorder.names
    assert recorder.allocating == []
    assert set(recorder.names[after_first:]) <= {
        "aten.copy_.default",
        "aten.mul.out",
        "aten.add.out",
        "aten.lerp.Scalar_out",
    }
    assert len(addresses) <= 2
    # One pass over the state for each non-zero coefficient, and a copy of what is remembered.
    longest = 3 + planned.history
    if any(stage.correction for stage in planned.stages):
        longest += 2 + planned.history  # the same again, without a copy
    if planned.needs_unconditional:
        longest += 1 + planned.history
    assert planned.evaluations is not None
    assert len(recorder.names) - after_first <= longest * planned.evaluations


def test_the_recorder_sees_what_it_looks_for() -> None:
    with OperatorRecorder() as recorder:
        x = torch.zeros(3)
        x.add_(1)
        (x + 1)[0].item()
    assert "aten._local_scalar_dense.default" in recorder.names
    assert "aten.add.Tensor" in recorder.allocating
    assert "aten.add_.Tensor" not in recorder.allocating


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_may_return_its_argument(sd: NoiseSchedule, name: str) -> None:
    """An image that is its own denoised version stays as it is."""
    planned, latents, noise = prepared(sd, name, **silent(name))
    result = sample(planned, latents, unguided(lambda x, sigma: x), noise)
    torch.testing.assert_close(result, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "lms"])
def test_float64_state(sd: NoiseSchedule, name: str) -> None:
    planned, latents, noise = prepared(sd, name)
    assert sample(planned, latents.double(), gaussian(1.0), noise).dtype == torch.float64


def test_gradients_are_not_recorded(sd: NoiseSchedule) -> None:
    planned, latents, noise = prepared(sd, "dpmpp_2m")
    factor = torch.ones((), requires_grad=True)
    for step in run(planned, latents, lambda x, s: x * factor, noise):
        assert not step.latents.requires_grad
        assert torch.is_grad_enabled()  # the caller's own mode, between steps


def test_the_caller_may_stop(sd: NoiseSchedule) -> None:
    planned, latents, noise = prepared(sd, "heun")
    calls: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return x

    steps = run(planned, latents, denoise, noise)
    next(steps)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (None, r"euler_ancestral needs noise of shape \[5, 2, 4, 4, 4\], got none"),
        (torch.zeros(4, *SHAPE), r"needs noise of shape \[5, 2, 4, 4, 4\], got \[4, 2, 4, 4, 4\]"),
        (torch.zeros(5, 1, 4, 4, 4), r"needs noise of shape \[5, 2, 4, 4, 4\], got \[5, 1, "),
    ],
)
def test_noise_is_checked_before_the_first_step(
    sd: NoiseSchedule, noise: Tensor | None, message: str
) -> None:
    planned, latents, _ = prepared(sd, "euler_ancestral")
    with pytest.raises(ValueError, match=message):
        run(planned, latents, gaussian(1.0), noise)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4, 4, 4), torch.zeros(SHAPE).half()])
def test_a_result_that_would_broadcast_or_lose_digits_is_refused(
    sd: NoiseSchedule, wrong: Tensor
) -> None:
    planned, latents, noise = prepared(sd, "euler")
    with pytest.raises(ValueError, match=r"the denoiser returned .* expected torch.float32 \[2, 4"):
        sample(planned, latents, lambda x, s: wrong, noise)
