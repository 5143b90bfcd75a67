"""Noise sources: seeds, batches and the joint law of the draws."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch

from kdrt.errors import InvalidRequestError
from kdrt.sampling import BrownianNoise, NoiseSlot, SeededNoise, make_plan

SIGMAS = [14.6, 3.0, 0.7, 0.03, 0.0]
ODD = (3, 5, 7)  # no multiple of a vector's width


def test_the_first_draw_is_the_initial_latents() -> None:
    source = SeededNoise([11, 12], (4, 8, 8))
    first = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(12))
    latents = source.latents()
    assert latents.dtype == torch.float32
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(latents[1], first)
    latents.zero_()
    assert torch.equal(source.latents()[1], first)


@pytest.mark.parametrize("shape", [ODD, (4, 8, 8)])
def test_slots_go_on_with_the_generator_of_the_image(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    continued = torch.Generator().manual_seed(5)
    slots = [NoiseSlot(3.0, 2.0), NoiseSlot(2.0, 1.0)]
    source = SeededNoise([generator], shape)
    draws = source.draw(slots)
    expected = [torch.randn(shape, generator=continued) for _ in range(3)]
    assert torch.equal(source.latents()[0], expected[0])
    assert torch.equal(draws[:, 0], torch.stack(expected[1:]))
    assert torch.equal(source.draw(slots[:1])[0, 0], torch.randn(shape, generator=continued))


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde", "seeds_3"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    slots = make_plan(name, SIGMAS).slots
    together = SeededNoise([1, 2, 3], ODD)
    latents, draws = together.latents(), together.draw(slots)
    for index, seed in enumerate([1, 2, 3]):
        alone = SeededNoise([seed], ODD)
        assert torch.equal(alone.latents()[0], latents[index])
        assert torch.equal(alone.draw(slots)[:, 0], draws[:, index])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("dpmpp_sde", {"r": r}) for r in (0.3, 0.5, 1.0)],
        ("seeds_3", {}),  # three with one start
    ],
)
def test_overlapping_slots_have_the_brownian_law(name: str, options: dict[str, Any]) -> None:
    slots = make_plan(name, SIGMAS, **options).slots
    draws = SeededNoise([0], (1, 400, 400)).draw(slots).flatten(1).double()
    covariance = draws @ draws.T / draws.shape[1]
    for i, a in enumerate(slots):
        for j, b in enumerate(slots):
            overlap = max(0.0, min(a.sigma, b.sigma) - max(a.sigma_next, b.sigma_next))
            lengths = (a.sigma - a.sigma_next) * (b.sigma - b.sigma_next)
            # Five standard errors of a sample covariance of 160,000 values, at most √2 each.
            assert abs(covariance[i, j] - overlap / lengths**0.5) < 5 * 2**0.5 / 400


def test_churn_is_independent_of_everything() -> None:
    slots = make_plan("euler", SIGMAS, s_churn=3.0).slots
    assert len(slots) == 4
    assert all(slot.sigma == slot.sigma_next for slot in slots)
    doubled = [slots[0], slots[0]]
    first, second = SeededNoise([0], (1, 200, 200)).draw(doubled).flatten(1)
    assert abs((first * second).mean()) < 5 / 200


def test_no_slots_no_noise() -> None:
    assert SeededNoise([0, 1], (4, 2, 2)).draw([]).shape == (0, 2, 4, 2, 2)


def test_refused_seeds() -> None:
    with pytest.raises(InvalidRequestError, match="noise needs at least one seed, one per image"):
        SeededNoise([], (4, 8, 8))


def test_refused_generators() -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda:0")

    with pytest.raises(InvalidRequestError, match=r"generators must be on the CPU.*not on cuda:0"):
        SeededNoise([Elsewhere()], (4, 8, 8))


class TestBrownianNoise:
    @pytest.fixture(autouse=True)
    def _needs_torchsde(self) -> None:
        pytest.importorskip("torchsde")

    def test_one_tree_per_image_does_not_depend_on_the_batch(self) -> None:
        slots = make_plan("dpmpp_sde", SIGMAS).slots
        together = BrownianNoise((2, 4, 4, 4), [1, 2], 0.03, 14.6).draw(slots)
        alone = BrownianNoise((1, 4, 4, 4), [2], 0.03, 14.6).draw(slots)
        assert torch.equal(together[:, 1:], alone)

    def test_draws_are_normal_and_correlated_like_a_path(self) -> None:
        slots = make_plan("dpmpp_sde", SIGMAS).slots[:2]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draws = BrownianNoise((1, 1, 200, 200), 0, 0.03, 14.6).draw(slots).flatten(1)
        first, second = draws
        rho = (slots[0].sigma - slots[0].sigma_next) / (slots[1].sigma - slots[1].sigma_next)
        assert first.std() == pytest.approx(1, abs=0.02)
        assert second.std() == pytest.approx(1, abs=0.02)
        assert (first * second).mean() == pytest.approx(rho**0.5, abs=0.04)

    @pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral"])
    def test_one_step(self, name: str) -> None:
        slots = make_plan(name, [14.6, 0.0]).slots
        noise = BrownianNoise((1, 4, 4, 4), 0, 14.6, 14.6).draw(slots)
        assert noise.shape == (0, 1, 4, 4, 4)

    @pytest.mark.parametrize(
        ("slot", "message"),
        [
            (NoiseSlot(15.0, 3.0), "covers sigma from 14.6 to 0.03, not from 15 to 3"),
            (NoiseSlot(3.0, 0.01), "covers sigma from 14.6 to 0.03, not from 3 to 0.01"),
            (NoiseSlot(3.0, 3.0), "with s_churn, use seeded noise"),
        ],
    )
    def test_refused_slots(self, slot: NoiseSlot, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            BrownianNoise((1, 4, 4, 4), 0, 0.03, 14.6).draw([slot])

    def test_refused_seeds(self) -> None:
        with pytest.raises(
            InvalidRequestError, match="3 noise seeds for a batch of 2: give one seed"
        ):
            BrownianNoise((2, 4, 4, 4), [1, 2, 3], 0.03, 14.6)


def test_torchsde_is_optional(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(InvalidRequestError, match="needs torchsde: pip install torchsde"):
        BrownianNoise((1, 4, 4, 4), 0, 0.03, 14.6)
