"""Perturbed-attention guidance and regional prompts beside their formulas, with a UNet call for
every prediction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.bundle import PredictionType
from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.inputs import DenoiserInputs, RegionalPrompts, SamplingRun, UNetConditioning
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.regional import relative_weights
from kdrt.denoise.scaling import Scaling
from kdrt.denoise.shortcuts import EvaluationKind, Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule, SeededNoise, make_plan
from kdrt_engines.torch_eager import TorchEngine
from tests.oracles import kdiffusion
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, Recorder, tiny_unet, unet_spec

SHAPE = (2, CHANNELS, 4, 6)
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SIGMAS = [14.6, 5.0, 2.0, 0.6, 0.1, 0.0]
SPEC = unet_spec(perturbed=True)
UNET = TorchEngine(Recorder(tiny_unet, [tensor.name for tensor in SPEC.inputs]), SPEC)
W, PAG = 4.0, PerturbedAttention(3.0, 0.002)
MASKS = torch.zeros(2, *SHAPE[2:])
MASKS[0, :, :3] = 1.0
MASKS[1, 2:, 2:] = 0.6


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(seed: int) -> UNetConditioning:
    prompt = Conditioning(random(seed, 2, 5, sum(WIDTHS)), random(seed + 1, 2, POOLED))
    return UNetConditioning(prompt, random(seed + 2, 2, 6))


POSITIVE, NEGATIVE, *REGIONS = (told(10 * place) for place in range(4))


def prediction(x: Tensor, sigma: float, told: UNetConditioning, perturbed: float = 0.0) -> Tensor:
    """One call of the UNet for one prediction."""
    text_embeds, time_ids = told.prompt.text_embeds, told.time_ids
    assert text_embeds is not None
    assert time_ids is not None
    return tiny_unet(
        x / math.hypot(sigma, 1),
        torch.full((2,), SCHEDULE.timestep(sigma)),
        encoder_hidden_states=told.prompt.encoder_hidden_states,
        text_embeds=text_embeds,
        time_ids=time_ids,
        pag_rows=torch.full((2,), perturbed),
    )


def denoiser(inputs: DenoiserInputs, prediction_type: PredictionType = "epsilon") -> Denoiser:
    made = Denoiser(
        UNET,
        Scaling(prediction_type, SCHEDULE),
        images=2,
        height=4,
        width=6,
        tokens=5,
        parts=inputs.parts,
    )
    made.prepare(inputs)
    return made


@pytest.mark.parametrize("negative", [None, NEGATIVE], ids=["alone", "with CFG"])
@pytest.mark.parametrize("sigma", [9.0, 0.7])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_result_is_led_away_from_the_perturbed_one(
    kind: PredictionType, sigma: float, negative: UNetConditioning | None
) -> None:
    inputs = DenoiserInputs(
        positive=POSITIVE, negative=negative, guidance_scale=W, perturbed_attention=PAG
    )
    x = random(5, *SHAPE) * sigma
    c, p = prediction(x, sigma, POSITIVE), prediction(x, sigma, POSITIVE, 1.0)
    guided = c if negative is None else torch.lerp(prediction(x, sigma, negative), c, W)
    scale = max(0.0, 3.0 - 0.002 * (1000 - SCHEDULE.timestep(sigma)))
    _, _, c_skip, c_out = Scaling(kind, SCHEDULE).scalars(sigma)
    expected = c_skip * x + c_out * (guided + scale * (c - p))
    torch.testing.assert_close(denoiser(inputs, kind)(x, sigma), expected, rtol=1e-5, atol=1e-5)


def test_outside_of_the_guidance_interval_one_row_is_left() -> None:
    inputs = DenoiserInputs(
        positive=POSITIVE,
        perturbed_attention=PAG,
        shortcuts=Shortcuts(guidance_interval=(1.0, 5.0)),
    )
    x = random(5, *SHAPE)
    actual = denoiser(inputs)(x, 0.5, EvaluationKind(guided=False))
    expected = x - 0.5 * prediction(x, 0.5, POSITIVE)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_adaptive_scale_never_turns_round() -> None:
    assert PerturbedAttention(3.0, 0.01).at(999) == pytest.approx(2.99)
    assert PerturbedAttention(3.0, 0.01).at(100) == 0
    assert PerturbedAttention(3.0).at(0.5) == 3.0


def test_what_each_prompt_counts_for() -> None:
    """Σ mᵢ·Dᵢ / Σ mᵢ, where the image's own prompt fills what is left open."""
    base, first, second = relative_weights(MASKS, [1.0, 2.0], 0.0)[:, 0]
    assert torch.equal(base[:2, 3:], torch.ones(2, 3))  # no mask
    assert torch.equal(first[:2, :3], torch.ones(2, 3))  # one
    torch.testing.assert_close(second[2:, 2], torch.full((2,), 1.2 / 2.2))  # both
    torch.testing.assert_close(base[2:, 3:], torch.full((2, 3), 0.4 / 1.6))  # a grey one
    everywhere = relative_weights(MASKS, [1.0, 2.0], 0.5)
    torch.testing.assert_close(everywhere.sum(0), torch.ones(1, 4, 6))
    torch.testing.assert_close(everywhere[0, 0, :2, :3], torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize(
    ("sampler", "theirs"),
    [("euler", "sample_euler"), ("dpmpp_2m", "sample_dpmpp_2m"), ("heun", "sample_heun")],
)
def test_regions_are_k_diffusions_sampler_on_the_combined_results(
    sampler: str, theirs: str
) -> None:
    weights = relative_weights(MASKS, [1.0, 2.0], 0.2)
    regions = RegionalPrompts(tuple(REGIONS), weights.expand(2, *weights.shape))
    inputs = DenoiserInputs(positive=POSITIVE, negative=NEGATIVE, guidance_scale=W, regions=regions)
    counts = torch.stack([0.2 + (1 - MASKS.sum(0)).clamp(min=0), MASKS[0], 2.0 * MASKS[1]])

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = float(sigma[0])
        each = [x - level * prediction(x, level, told) for told in (POSITIVE, *REGIONS)]
        conditional = sum(m * d for m, d in zip(counts, each, strict=True)) / counts.sum(0)
        without = x - level * prediction(x, level, NEGATIVE)
        return without + W * (conditional - without)

    noise = SeededNoise([1, 2], SHAPE[1:])
    latents = noise.latents() * SIGMAS[0]
    expected = getattr(kdiffusion.load(), theirs)(
        model, latents.clone(), torch.tensor(SIGMAS), disable=True
    )
    denoising = Denoising(
        UNET, Scaling("epsilon", SCHEDULE), shallow=lambda: UNET, cuda_graph="off", stream=None
    )
    run = SamplingRun(plan=make_plan(sampler, SIGMAS), latents=latents, noise=noise, inputs=inputs)
    *_, last = denoising.sample(run, watched=False)
    torch.testing.assert_close(last.latents, expected, rtol=1e-5, atol=1e-5)
