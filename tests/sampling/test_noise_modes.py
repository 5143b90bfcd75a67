"""Whose noise a seed stands for: draw orders, against the programs' own rules."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError
from kdrt.sampling import (
    NOISES,
    NoiseSchedule,
    SeededNoise,
    check_noise,
    find_noise,
    sample,
    sigmas_for,
)
from kdrt.sampling.philox import PhiloxGenerator
from tests.support.denoisers import rough
from tests.support.plans import fixed_plan

SHAPE = (4, 5, 3)
SIGMAS = [14.6, 6.0, 3.0, 0.7, 0.03, 0.0]


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def normal(each: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(SHAPE, generator=generator) for generator in each])


class TestPhilox:
    def test_known_vector(self) -> None:
        values = PhiloxGenerator(0).randn((4,))
        expected = torch.tensor([-0.92466, -0.42534, -2.64385, 0.14518])
        assert (values - expected).abs().max() < 6e-6

    def test_draws_and_seeds_differ(self) -> None:
        generator = PhiloxGenerator(2**40 + 5)
        draws = [generator.randn((100, 100)).flatten() for _ in range(3)]
        draws.append(PhiloxGenerator(5).randn((100, 100)).flatten())
        draws.append(PhiloxGenerator(2**40).randn((100, 100)).flatten())
        correlation = torch.stack(draws) @ torch.stack(draws).T / 1e4
        assert (correlation - torch.eye(5)).abs().max() < 0.08
        assert draws[0].mean().abs() < 0.05
        assert (draws[0] ** 4).mean() == pytest.approx(3, abs=0.3)

    def test_a_value_does_not_depend_on_the_shape(self) -> None:
        assert torch.equal(
            PhiloxGenerator(7).randn((60,))[:35], PhiloxGenerator(7).randn((5, 7)).flatten()
        )


class TestPerImage:
    def test_is_seeded_noise(self) -> None:
        planned = fixed_plan("dpmpp_sde", SIGMAS)
        ours, plain = (
            NOISES["per_image"].make([1, 2], SHAPE, planned, None),
            SeededNoise([1, 2], SHAPE),
        )
        assert torch.equal(ours.latents(), plain.latents())
        assert torch.equal(ours.draw(planned.slots), plain.draw(planned.slots))

    def test_the_noise_seed_of_an_image_changes_nothing(self) -> None:
        planned = fixed_plan("euler_ancestral", SIGMAS)
        make = NOISES["per_image"].make
        plain, same = make([1, 2], SHAPE, planned, None), make([1, 2], SHAPE, planned, [1, 2])
        other = make([1, 2], SHAPE, planned, [1, 9])
        drawn = plain.draw(planned.slots)
        assert torch.equal(same.draw(planned.slots), drawn)
        changed = other.draw(planned.slots)
        assert torch.equal(other.latents(), plain.latents())
        assert torch.equal(changed[:, 0], drawn[:, 0])
        assert not torch.isclose(changed[:, 1], drawn[:, 1]).any()


class Hijacked:
    """torch, with ``randn_like`` drawing from one generator an image: how the A1111 web UI makes
    k-diffusion's samplers use its generators."""

    def __init__(self, each: list[torch.Generator]) -> None:
        self._generators = each

    def randn_like(self, x: Tensor) -> Tensor:
        return normal(self._generators)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class TestA1111:
    @pytest.mark.parametrize("delta", [0, 31337])
    @pytest.mark.parametrize(
        ("sampler", "options"),
        [
            ("euler_ancestral", {}),
            ("dpm_2_ancestral", {"eta": 0.7}),
            ("dpmpp_2s_ancestral", {"s_noise": 1.1}),
            ("euler", {"s_churn": 3.0}),
            ("heun", {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 7.0}),
            ("dpm_2", {"s_churn": 2.0, "s_tmax": 3.5}),
        ],
    )
    def test_images_of_k_diffusion_with_generators_of_an_image(
        self,
        kd: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        sampler: str,
        options: dict[str, float],
        delta: int,
    ) -> None:
        """Churn between bounds is drawn, unused, at every other step too."""
        planned = fixed_plan(sampler, SIGMAS, **options)
        noise = NOISES["a1111"].make([5, 9], SHAPE, planned, None, eta_noise_seed_delta=delta)
        denoise = rough(SHAPE[0], torch.float32)
        each = generators([5, 9])
        x = normal(each)
        assert torch.equal(noise.latents(), x)
        if delta:
            each = generators([5 + delta, 9 + delta])
        monkeypatch.setattr(kd, "torch", Hijacked(each))
        expected = getattr(kd, f"sample_{sampler}")(
            lambda x, s: denoise(x, float(s[0])),
            x * SIGMAS[0],
            torch.tensor(SIGMAS),
            disable=True,
            **options,
        )
        result = sample(planned, x * SIGMAS[0], denoise, noise.draw(planned.slots))
        assert (result - expected).abs().max() < 1e-5 * SIGMAS[0]

    def test_the_nv_source(self) -> None:
        planned = fixed_plan("euler_ancestral", SIGMAS)
        make = NOISES["a1111"].make
        noise = make([0, 3], SHAPE, planned, None, source="nv", eta_noise_seed_delta=4)
        zero, seven = PhiloxGenerator(0), PhiloxGenerator(7)
        assert torch.equal(noise.latents()[0], zero.randn(SHAPE))
        drawn = noise.draw(planned.slots)
        assert len(drawn) == 4
        expected = [seven.randn(SHAPE) for _ in drawn]
        assert torch.equal(drawn[:, 1], torch.stack(expected))


@pytest.mark.filterwarnings("ignore:Should have t")  # torchsde, of its own rounding
@pytest.mark.parametrize(
    ("mode", "tree_seeds"), [("brownian", [5, 6]), ("a1111", [5, 6]), ("comfyui", 5)]
)
def test_trees_of_sde_samplers(
    kd: ModuleType, sd: NoiseSchedule, mode: str, tree_seeds: int | list[int]
) -> None:
    grid = torch.tensor(sigmas_for("karras", 6, sd), dtype=torch.float32)
    planned = fixed_plan("dpmpp_2m_sde", grid.tolist())
    noise = NOISES[mode].make([5, 6], SHAPE, planned, None)
    x = noise.latents() * grid[0]
    tree = kd.BrownianTreeNoiseSampler(x, grid[-2], grid[0], tree_seeds)
    drawn = noise.draw(planned.slots)
    for slot, draw in zip(planned.slots, drawn, strict=True):
        assert torch.equal(draw, tree(torch.tensor(slot.sigma), torch.tensor(slot.sigma_next)))


def test_a_brownian_noise_seed_is_the_trees() -> None:
    pytest.importorskip("torchsde")
    planned = fixed_plan("dpmpp_2m_sde", SIGMAS)
    make = NOISES["brownian"].make
    shared = make([1, 2], SHAPE, planned, [8, 9])
    assert torch.equal(shared.latents(), make([1, 2], SHAPE, planned, None).latents())
    other = make([3, 4], SHAPE, planned, [8, 9])
    assert torch.equal(shared.draw(planned.slots), other.draw(planned.slots))


@pytest.mark.parametrize(("noise_seeds", "way"), [(None, 22), ([40, 41], 41)])
def test_comfyui_draws_a_batch_at_once(noise_seeds: list[int] | None, way: int) -> None:
    planned = fixed_plan("euler_ancestral", SIGMAS)
    noise = NOISES["comfyui"].make([21, 22, 23], SHAPE, planned, noise_seeds)
    first, steps = generators([21, way])
    assert torch.equal(noise.latents(), torch.randn((3, *SHAPE), generator=first))
    expected = [torch.randn((3, *SHAPE), generator=steps) for _ in planned.slots]
    assert torch.equal(noise.draw(planned.slots), torch.stack(expected))


@pytest.mark.parametrize("mode", NOISES)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_every_mode_with_and_without_slots(mode: str, sampler: str) -> None:
    pytest.importorskip("torchsde")
    for sigmas in ([14.6, 0.0], SIGMAS, [3.0, 1.0]):
        planned = fixed_plan(sampler, sigmas)
        check_noise(NOISES[mode], planned, [1, 2], None, {})
        noise = NOISES[mode].make([1, 2], SHAPE, planned, None)
        assert noise.latents().shape == (2, *SHAPE)
        drawn = noise.draw(planned.slots)
        assert drawn.shape == (len(planned.slots), 2, *SHAPE)
        assert drawn.dtype == torch.float32
        assert drawn.isfinite().all()


@pytest.mark.parametrize(
    ("mode", "sampler", "arguments", "message"),
    [
        ("per_image", "euler", {"options": {"source": "nv"}}, "per_image has no option 'source'"),
        ("a1111", "euler", {"options": {"ensd": 1}}, "it accepts eta_noise_seed_delta, source"),
        ("a1111", "euler", {"options": {"source": "gpu"}}, "source must be cpu or nv, not 'gpu'"),
        (
            *("a1111", "euler", {"options": {"eta_noise_seed_delta": -1}}),
            r"eta_noise_seed_delta must be a whole number from 0 to 2\*\*64 - 1, not -1",
        ),
        ("a1111", "euler", {"noise_seeds": [1, 2]}, "give its option eta_noise_seed_delta"),
        ("a1111", "dpmpp_sde", {"options": {"source": "nv"}}, "is not emulated with the source nv"),
        ("comfyui", "euler", {"seeds": [1, 3]}, "one seed for the whole batch: give a single"),
    ],
)
def test_refusals(mode: str, sampler: str, arguments: dict[str, Any], message: str) -> None:
    given = {"seeds": [1, 2], "noise_seeds": None, "options": {}} | arguments
    with pytest.raises(InvalidRequestError, match=message):
        check_noise(NOISES[mode], fixed_plan(sampler, SIGMAS), **given)


@pytest.mark.parametrize("mode", ["brownian", "comfyui"])
def test_churn_is_refused_where_it_has_no_law(mode: str) -> None:
    planned = fixed_plan("euler", SIGMAS, s_churn=2.0)
    with pytest.raises(InvalidRequestError, match=f"churn, for which the noise {mode} has none"):
        check_noise(NOISES[mode], planned, [1], None, {})
    check_noise(NOISES["a1111"], planned, [1], None, {})


@pytest.mark.parametrize("name", ["gpu", "", None])
def test_unknown_modes(name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="known: per_image, brownian, a1111, comfyui"):
        find_noise(name)


def test_without_torchsde_only_trees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> SimpleNamespace:
        raise InvalidRequestError("needs torchsde")

    monkeypatch.setattr("kdrt.sampling.noise_modes.torchsde", missing)
    monkeypatch.setattr("kdrt.sampling.noise.torchsde", missing)
    for mode, sampler in (("a1111", "euler_ancestral"), ("brownian", "euler")):
        planned = fixed_plan(sampler, SIGMAS)
        check_noise(NOISES[mode], planned, [1], None, {})
        NOISES[mode].make([1], SHAPE, planned, None).draw(planned.slots)
    with pytest.raises(InvalidRequestError, match="needs torchsde"):
        check_noise(NOISES["comfyui"], fixed_plan("dpmpp_sde", SIGMAS), [1], None, {})
