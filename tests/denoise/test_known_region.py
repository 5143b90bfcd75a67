"""A denoiser that knows a part of the images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.inputs import DenoiserInputs, UNetConditioning
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Parts
from kdrt.denoise.scaling import Scaling
from kdrt.prompt import Conditioning
from kdrt.sampling import SAMPLERS, NoiseSchedule, SeededNoise, run, sigmas_for
from kdrt_engines.torch_eager import TorchEngine
from tests.support.plans import fixed_plan
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, Recorder, tiny_unet, unet_spec

SHAPE = (2, CHANNELS, 6, 6)
NOISE_SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
GRID = sigmas_for("karras", 8, NOISE_SCHEDULE).tolist()


def conditioning() -> UNetConditioning:
    prompt = Conditioning(torch.randn(2, 5, sum(WIDTHS)), torch.randn(2, POOLED))
    return UNetConditioning(prompt, torch.ones(2, 6))


def inputs(region: KnownRegion | None) -> DenoiserInputs:
    return DenoiserInputs(
        positive=conditioning(),
        negative=conditioning(),
        guidance_scale=3.0,
        known_region=region,
    )


def denoiser() -> Denoiser:
    spec = unet_spec()
    unet = TorchEngine(Recorder(tiny_unet, [tensor.name for tensor in spec.inputs]), spec)
    scaling = Scaling("epsilon", NOISE_SCHEDULE)
    return Denoiser(
        unet, scaling, images=2, height=6, width=6, tokens=5, parts=Parts(unconditional=True)
    )


def region_of(latents: Tensor) -> KnownRegion:
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[:, :, 2:4, 1:5] = True
    return KnownRegion(latents, mask)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dpm_adaptive"])
def test_a_known_region_follows_its_noise_level(sampler: str) -> None:
    """Whatever the sampler: it ends as z; where the sampler adds no noise of its own it is
    z + σ·ξ after every step, with the noise that it began with."""
    known, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    region = region_of(known)
    plan = fixed_plan(sampler, GRID)
    denoise = denoiser()
    denoise.prepare(inputs(region), unconditional=plan.needs_unconditional)
    drawn = SeededNoise([1, 2], SHAPE[1:]).draw(plan.slots) if plan.slots else None
    kept = ~region.mask.expand(SHAPE)
    for step in run(plan, known + GRID[0] * noise, denoise, drawn):
        if not plan.slots:
            wanted = known + step.sigma_next * noise
            torch.testing.assert_close(step.latents[kept], wanted[kept], rtol=1e-4, atol=1e-4)
    end = known + step.sigma_next * noise  # some samplers end a little above 0
    torch.testing.assert_close(step.latents[kept], end[kept], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(step.latents[~kept], known[~kept], atol=0.1)


@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_known_replaces_both_results_and_nothing_else(on_device: bool) -> None:
    known, x = torch.randn(SHAPE), torch.randn(SHAPE)
    told = inputs(None)
    plain, masked = denoiser(), denoiser()
    plain.prepare(told, unconditional=True)
    region = region_of(known)
    masked.prepare(DenoiserInputs(**{**vars(told), "known_region": region}), unconditional=True)
    results = []
    for each in (plain, masked):
        numbers = torch.tensor([each.numbers(2.0)] * 2)
        denoised = each.denoise(x, numbers) if on_device else each(x, 2.0)
        results.append((denoised, each.unconditional))
    for free, imposed in zip(*results, strict=True):
        assert torch.equal(imposed, torch.where(region.mask, free, known))


def test_the_next_run_has_its_own_region_at_the_same_address_or_none() -> None:
    x = torch.randn(SHAPE)
    bound = denoiser()
    told = inputs(None)
    modes, addresses = [], set()
    for known in (torch.zeros(SHAPE), torch.ones(SHAPE)):
        bound.prepare(DenoiserInputs(**{**vars(told), "known_region": region_of(known)}))
        result = bound(x, 1.0)
        assert torch.equal(result[:, :, 0], known[:, :, 0])
        modes.append(bound.mode())
        assert bound._region is not None
        addresses.add(bound._region.latents.data_ptr())
    assert len(addresses) == 1, "captured graphs read it there"
    expected = denoiser()
    expected.prepare(told)
    bound.prepare(told)
    assert torch.equal(bound(x, 1.0), expected(x, 1.0))
    assert modes[0] == modes[1] != bound.mode()
