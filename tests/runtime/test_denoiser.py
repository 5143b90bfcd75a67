"""The denoiser against straightforward references."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_model import CHANNELS, GUIDANCE_WIDTH, POOLED, WIDTHS, Recorder, tiny_unet, unet_spec
from torch import Tensor

from kdrt.bound_unet import guidance_embedding
from kdrt.denoiser import Denoiser, PredictionType, is_doubled
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule
from kdrt_engines.torch_eager import TorchEngine

IMAGES, HEIGHT, WIDTH, TOKENS = 2, 4, 6, 5
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SIGMAS = (14.6, 1.0, 0.0292)


def conditioning(seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(IMAGES, TOKENS, sum(WIDTHS), generator=generator)
    return Conditioning(hidden, torch.randn(IMAGES, POOLED, generator=generator))


def denoiser(
    prediction_type: PredictionType = "epsilon",
    *,
    doubled: bool = True,
    distilled: bool = False,
    dtype: str = "float32",
) -> tuple[Denoiser, Recorder]:
    spec = unet_spec(dtype, distilled=distilled)
    unet = Recorder(tiny_unet, [tensor.name for tensor in spec.inputs])
    bound = Denoiser(
        TorchEngine(unet, spec),
        SCHEDULE,
        prediction_type,
        images=IMAGES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        doubled=doubled,
    )
    return bound, unet


def latents(seed: int = 0) -> Tensor:
    shape = (IMAGES, CHANNELS, HEIGHT, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def time_ids(count: int) -> Tensor:
    return torch.arange(count * 6, dtype=torch.float32).reshape(count, 6)


def reference(
    x: Tensor, sigma: float, told: Conditioning, ids: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """The network's output and the denoised picture, in float64 and without any cleverness."""
    x = x.double()
    assert told.text_embeds is not None
    output = tiny_unet(
        x / (sigma**2 + 1) ** 0.5,
        torch.full((len(x),), SCHEDULE.timestep(sigma), dtype=torch.float32),
        encoder_hidden_states=told.encoder_hidden_states,
        text_embeds=told.text_embeds,
        time_ids=ids,
    )
    if prediction_type == "epsilon":
        return output, x - sigma * output
    return output, x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_guides_the_denoised_pictures(prediction_type: PredictionType, sigma: float) -> None:
    bound, _ = denoiser(prediction_type)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    bound.prepare(positive, negative, guidance_scale=7.5, time_ids=ids)
    x = latents() * sigma

    _, unconditional = reference(x, sigma, negative, ids[:IMAGES], prediction_type)
    _, conditional = reference(x, sigma, positive, ids[IMAGES:], prediction_type)
    expected = unconditional + 7.5 * (conditional - unconditional)

    torch.testing.assert_close(bound(x, sigma).double(), expected, rtol=1e-5, atol=1e-5 * sigma)


def test_unconditional_half_comes_first() -> None:
    bound, unet = denoiser()
    positive, negative = conditioning(1), conditioning(2)
    bound.prepare(positive, negative, guidance_scale=2.0, time_ids=time_ids(2 * IMAGES))
    bound(latents(), 1.0)
    hidden = unet.calls[0]["encoder_hidden_states"]
    assert torch.equal(hidden[:IMAGES], negative.encoder_hidden_states)
    assert torch.equal(hidden[IMAGES:], positive.encoder_hidden_states)
    assert torch.equal(unet.calls[0]["text_embeds"][:IMAGES], negative.text_embeds)
    assert torch.equal(unet.calls[0]["sample"][:IMAGES], unet.calls[0]["sample"][IMAGES:])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_guidance_there_is_one_half(prediction_type: PredictionType) -> None:
    bound, unet = denoiser(prediction_type, doubled=False)
    positive, ids = conditioning(1), time_ids(IMAGES)
    bound.prepare(positive, None, guidance_scale=1.0, time_ids=ids)
    _, expected = reference(latents(), 1.0, positive, ids, prediction_type)
    torch.testing.assert_close(bound(latents(), 1.0).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(unet.calls[0]["sample"]) == IMAGES


def test_timesteps_are_fractional_and_float32() -> None:
    bound, unet = denoiser()
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=5.0)
    # Half way between two training levels, in ln σ, is half way between their timesteps.
    between = math.sqrt(SCHEDULE.sigmas[500] * SCHEDULE.sigmas[501])
    for sigma in (SCHEDULE.sigma_max, between, SCHEDULE.sigma_min):
        bound(latents(), sigma)
    seen = torch.stack([call["timestep"] for call in unet.calls])
    assert seen.dtype == torch.float32
    expected = torch.tensor([999.0, 500.5, 0.0])[:, None].expand(3, 2 * IMAGES)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_guidance_rescale_agrees_with_diffusers(prediction_type: PredictionType) -> None:
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    sigma, x = 2.0, latents() * 2
    bound, _ = denoiser(prediction_type)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    bound.prepare(positive, negative, guidance_scale=9.0, guidance_rescale=0.7, time_ids=ids)

    unconditional, _ = reference(x, sigma, negative, ids[:IMAGES], prediction_type)
    conditional, _ = reference(x, sigma, positive, ids[IMAGES:], prediction_type)
    guided = unconditional + 9.0 * (conditional - unconditional)
    rescaled = rescale_noise_cfg(guided, conditional, guidance_rescale=0.7)
    if prediction_type == "epsilon":
        expected = x - sigma * rescaled
    else:
        expected = x / (sigma**2 + 1) - rescaled * sigma / (sigma**2 + 1) ** 0.5

    torch.testing.assert_close(bound(x, sigma).double(), expected.double(), rtol=1e-5, atol=1e-4)


def test_half_precision_networks_are_guided_in_float32() -> None:
    """At 100-fold guidance, float16 arithmetic on the difference would be far off."""
    bound, unet = denoiser(dtype="float16")
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=100.0)
    x = latents()
    result = bound(x, 1.0)
    call = unet.calls[0]
    names = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", "freeu")
    output = tiny_unet(**{name: call[name] for name in names}).double()
    unconditional, conditional = output.chunk(2)
    expected = x.double() - (unconditional + 100 * (conditional - unconditional))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_call_allocates_no_result_and_leaves_its_input() -> None:
    bound, _ = denoiser()
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=5.0)
    x = latents()
    first = bound(x, 3.0)
    assert torch.equal(x, latents())
    assert bound(x, 1.0).data_ptr() == first.data_ptr()


def test_static_inputs_are_written_again_by_prepare() -> None:
    bound, unet = denoiser()
    freeu = (1.3, 1.4, 0.9, 0.2)
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=5.0, freeu=freeu)
    bound(latents(), 1.0)
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=5.0)
    bound(latents(), 1.0)
    assert unet.calls[0]["freeu"].tolist() == pytest.approx(freeu)
    assert unet.calls[1]["freeu"].tolist() == [1, 1, 1, 1]


def test_distilled_models_take_guidance_as_an_input() -> None:
    assert not is_doubled(unet_spec(distilled=True), 8.0)
    assert is_doubled(unet_spec(), 8.0)
    assert not is_doubled(unet_spec(), 1.0)
    bound, unet = denoiser(doubled=False, distilled=True)
    bound.prepare(conditioning(1), None, guidance_scale=8.5, time_ids=time_ids(IMAGES))
    bound(latents(), 1.0)
    seen = unet.calls[0]["timestep_cond"]
    torch.testing.assert_close(seen, guidance_embedding(8.5, GUIDANCE_WIDTH).expand_as(seen))


@pytest.mark.parametrize("size", [7, 256])
def test_guidance_embedding_agrees_with_the_formula(size: int) -> None:
    half = size // 2
    expected = [0.0] * size
    for i in range(half):
        angle = (8.5 - 1) * 1000 / 10_000 ** (i / (half - 1))
        expected[i], expected[half + i] = math.sin(angle), math.cos(angle)
    # float32 angles of several thousand radians are exact to some 5e-4.
    assert guidance_embedding(8.5, size).tolist() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_hands_out_the_unconditional_result(prediction_type: PredictionType) -> None:
    bound, _ = denoiser(prediction_type)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    with pytest.raises(RuntimeError, match="not prepared to keep its unconditional results"):
        _ = bound.unconditional
    # Guidance 1 is no guidance, and the unconditional half is still there.
    for scale in (7.5, 1.0):
        bound.prepare(positive, negative, guidance_scale=scale, time_ids=ids, unconditional=True)
        denoised = bound(latents(), 1.5).clone()
        _, expected = reference(latents(), 1.5, negative, ids[:IMAGES], prediction_type)
        torch.testing.assert_close(bound.unconditional.double(), expected, rtol=1e-5, atol=1e-5)
        bound.prepare(positive, negative, guidance_scale=scale, time_ids=ids)
        assert torch.equal(bound(latents(), 1.5), denoised)
        with pytest.raises(RuntimeError, match="not prepared"):
            _ = bound.unconditional


class Halves(torch.nn.Module):
    """A network with another answer for every element, in the dtype of its sample."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, sample: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
        told = rest[0].double().mean((1, 2)) + timestep.double() / 300
        mixed = sample.double().roll(1, -1) * 0.4 + told.sin()[:, None, None, None]
        return mixed.tanh().to(self.dtype)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("doubled", "rescale", "unconditional"),
    [(True, 0.0, False), (True, 0.7, False), (True, 0.7, True), (False, 0.0, False)],
)
def test_numbers_on_the_device_give_the_same(
    prediction_type: PredictionType, dtype: str, doubled: bool, rescale: float, unconditional: bool
) -> None:
    spec = unet_spec(dtype)
    bound = Denoiser(
        TorchEngine(Halves(torch.float16 if dtype == "float16" else torch.float32), spec),
        SCHEDULE,
        prediction_type,
        images=IMAGES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        doubled=doubled,
    )
    for guidance in (7.5, 3.0):
        bound.prepare(
            conditioning(1),
            conditioning(2) if doubled else None,
            guidance_scale=guidance,
            guidance_rescale=rescale,
            unconditional=unconditional,
        )
        for sigma in SIGMAS:
            x = latents() * sigma
            expected = bound(x, sigma).clone()
            unguided = bound.unconditional.clone() if unconditional else None
            actual = bound.denoise(x, torch.tensor(bound.numbers(sigma)))
            torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6 * (1 + sigma))
            if unguided is not None:
                torch.testing.assert_close(
                    bound.unconditional, unguided, rtol=2e-6, atol=2e-6 * (1 + sigma)
                )


def test_the_guidance_scale_is_no_part_of_what_is_captured() -> None:
    """Work recorded once gives the results of whatever `prepare` says later."""
    bound, _ = denoiser()
    x, numbers = latents(), torch.tensor(bound.numbers(1.0))
    modes = set()
    for guidance in (2.0, 9.0):
        bound.prepare(conditioning(1), conditioning(2), guidance_scale=guidance)
        modes.add(bound.mode())
        torch.testing.assert_close(bound.denoise(x, numbers).clone(), bound(x, 1.0))
    bound.prepare(conditioning(1), conditioning(2), guidance_scale=2.0, guidance_rescale=0.5)
    modes.add(bound.mode())
    assert len(modes) == 2
