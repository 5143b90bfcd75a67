"""A mask whose greys are a strength for every latent: differential diffusion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdrt.denoise.known_region import HARD, KnownRegion
from kdrt.sampling import Plan, SeededNoise, run
from tests.support.plans import fixed_plan

SHAPE = (2, 4, 6, 7)
GRID = (14.0, 7.0, 3.0, 1.5, 0.7, 0.2, 0.0)


def network(x: Tensor, sigma: float) -> Tensor:
    """Some denoiser whose answer at a latent depends on those around it."""
    around = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return torch.tanh(around / (1 + sigma) + 0.3 * x.roll(1, 1) / (1 + sigma))


class WithRegion:
    """The denoiser of a run, told what is known."""

    def __init__(self, region: KnownRegion) -> None:
        self._region = region
        self._decides = torch.empty(SHAPE[0], 1, *SHAPE[2:], dtype=torch.bool)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = network(x, sigma)
        threshold = torch.tensor(self._region.threshold(sigma))
        self._region.impose(denoised, threshold, self._decides)
        return denoised

    @property
    def unconditional(self) -> Tensor:
        raise AssertionError("no sampler of these tests asks for it")


def sampled(plan: Plan, region: KnownRegion, state: Tensor) -> Tensor:
    noise = SeededNoise([1, 2], SHAPE[1:]).draw(plan.slots) if plan.slots else None
    steps = list(run(plan, state, WithRegion(region), noise))
    return steps[-1].latents


def as_published(known: Tensor, noise: Tensor, keep: Tensor) -> Tensor:
    """The authors' loop, with Euler's method: before every step but the first, the image with the
    noise of that step is laid over what is to be kept for longer (``keep``, 1 is kept longest)."""
    steps = len(GRID) - 1
    latents = known + GRID[0] * noise
    for index in range(steps):
        if index > 0:
            over = (keep > index / steps).float()
            latents = (known + GRID[index] * noise) * over + latents * (1 - over)
        sigma, following = GRID[index : index + 2]
        slope = (latents - network(latents, sigma)) / sigma
        latents = latents + (following - sigma) * slope
    return latents


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    known, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    mask = torch.rand(SHAPE[0], 1, *SHAPE[2:], generator=generator)
    return known, noise, mask


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_published_loop(seed: int) -> None:
    known, noise, mask = case(seed)
    mask[:, :, 0], mask[:, :, 1] = 0, 1
    found = sampled(
        fixed_plan("euler", GRID), KnownRegion.soft(known, mask, GRID), known + GRID[0] * noise
    )
    expected = as_published(known, noise, 1 - mask)
    changed = (mask > 0).expand(SHAPE)
    torch.testing.assert_close(found[changed], expected[changed], rtol=1e-5, atol=1e-5)
    # What is kept is kept to the end, where the published loop has the network look over it.
    torch.testing.assert_close(found[~changed], known[~changed], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[changed], known[changed], atol=0.1)


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "dpm_2"])
def test_black_and_white_is_a_hard_mask(sampler: str) -> None:
    known, noise, mask = case(7)
    mask = (mask > 0.5).float()
    plan, state = fixed_plan(sampler, GRID), known + GRID[0] * noise
    soft = sampled(plan, KnownRegion.soft(known, mask, GRID), state)
    assert torch.equal(soft, sampled(plan, KnownRegion(known, mask), state))


def test_thresholds_descend_along_the_grid() -> None:
    known, _, mask = case(1)
    region = KnownRegion.soft(known, mask, (8.0, 4.0, 2.0, 1.0, 0.0))
    asked = (9.0, 8.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5)
    assert [region.threshold(sigma) for sigma in asked] == [0.75, 0.75, 0.75, 0.5, 0.5, 0.25, 0, 0]
    # A float32 number may lie above its place in the grid.
    assert region.threshold(4.0 * (1 + 1e-7)) == 0.5
    assert KnownRegion(known, mask).threshold(4.0) == HARD
    assert region.one(1).threshold(4.0) == 0.5
