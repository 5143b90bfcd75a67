"""The denoiser against straightforward references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from kdrt.bundle import Dtype, PredictionType
from kdrt.denoise.bound_unet import guidance_embedding
from kdrt.denoise.denoiser import Denoiser, is_doubled
from kdrt.denoise.inputs import DenoiserInputs, UNetConditioning
from kdrt.denoise.parts import Parts
from kdrt.denoise.scaling import Scaling
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule
from kdrt.sampling.schedules import ContinuousSchedule
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.oracles import kdiffusion
from tests.support.tiny_model import (
    CHANNELS,
    GUIDANCE_WIDTH,
    POOLED,
    WIDTHS,
    Recorder,
    tiny_unet,
    unet_spec,
)

IMAGES, HEIGHT, WIDTH, TOKENS = 2, 4, 6, 5
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SIGMAS = (14.6, 1.0, 0.0292)


def conditioning(seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(IMAGES, TOKENS, sum(WIDTHS), generator=generator)
    return Conditioning(hidden, torch.randn(IMAGES, POOLED, generator=generator))


EDM = ContinuousSchedule.from_range(0.002, 80.0)
Model = tuple[PredictionType, float | None]
"""What a network predicts, and sigma_data where it is of the EDM formulation."""
MODELS: list[Model] = [
    ("epsilon", None),
    ("v_prediction", None),
    ("sample", None),
    ("epsilon", 0.5),
    ("v_prediction", 1.0),
    ("v_prediction", 0.5),
    ("sample", 0.5),
]
of_every_model = pytest.mark.parametrize("model", MODELS)


def denoiser(
    prediction_type: PredictionType = "epsilon",
    sigma_data: float | None = None,
    *,
    doubled: bool = True,
    distilled: bool = False,
    dtype: Dtype = "float32",
) -> tuple[Denoiser, Recorder]:
    spec = unet_spec(dtype, distilled=distilled)
    unet = Recorder(tiny_unet, [tensor.name for tensor in spec.inputs])
    bound = Denoiser(
        TorchEngine(unet, spec),
        Scaling(prediction_type, SCHEDULE if sigma_data is None else EDM, sigma_data),
        images=IMAGES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        parts=Parts(unconditional=doubled),
    )
    return bound, unet


def on_device(bound: Denoiser, sigma: float) -> Tensor:
    """What a call needs to know of a noise level, a row for each image."""
    return torch.tensor([bound.numbers(sigma)] * IMAGES)


def prepare(
    bound: Denoiser,
    positive: Conditioning,
    negative: Conditioning | None = None,
    *,
    time_ids: Tensor | None = None,
    unconditional: bool = False,
    **options: Any,
) -> None:
    """Prepare with ``time_ids`` of the whole batch, the negative half first."""
    halves = [positive] if negative is None else [negative, positive]
    ids = [None] * len(halves) if time_ids is None else time_ids.chunk(len(halves))
    told = [UNetConditioning(*half) for half in zip(halves, ids, strict=True)]
    inputs = DenoiserInputs(
        positive=told[-1], negative=None if negative is None else told[0], **options
    )
    bound.prepare(inputs, unconditional=unconditional)


def latents(seed: int = 0) -> Tensor:
    shape = (IMAGES, CHANNELS, HEIGHT, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def time_ids(count: int) -> Tensor:
    return torch.arange(count * 6, dtype=torch.float32).reshape(count, 6)


def reference(
    x: Tensor,
    sigma: float,
    told: Conditioning,
    ids: Tensor,
    prediction_type: PredictionType,
    sigma_data: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The network's output and the denoised image, in float64 and without any cleverness."""
    x = x.double()
    assert told.text_embeds is not None
    timestep = SCHEDULE.timestep(sigma) if sigma_data is None else 0.25 * math.log(sigma)
    output = tiny_unet(
        x / (sigma**2 + (sigma_data or 1) ** 2) ** 0.5,
        torch.full((len(x),), timestep, dtype=torch.float32),
        encoder_hidden_states=told.encoder_hidden_states,
        text_embeds=told.text_embeds,
        time_ids=ids,
    )
    return output, denoised_of(x, sigma, output, prediction_type, sigma_data)


def denoised_of(
    x: Tensor,
    sigma: float,
    output: Tensor,
    prediction_type: PredictionType,
    sigma_data: float | None,
) -> Tensor:
    """What a network's output says, by the schedulers of diffusers."""
    if prediction_type == "sample":
        return output
    if sigma_data is not None:
        edm = EDMEulerScheduler(sigma_data=sigma_data, prediction_type=prediction_type)
        return edm.precondition_outputs(x, output, sigma)
    if prediction_type == "epsilon":
        return x - sigma * output
    return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5


@of_every_model
@pytest.mark.parametrize("sigma", [70.0, *SIGMAS])
def test_a_network_is_asked_and_understood_as_diffusers_schedulers_do(
    model: Model, sigma: float
) -> None:
    """Against a step of the original: at the last one, to sigma 0, it is the denoised image."""
    prediction_type, sigma_data = model
    scheduler: Any
    if sigma_data is None:
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
        )
        sigma = min(sigma, SCHEDULE.sigma_max)
    else:
        kind = EDMDPMSolverMultistepScheduler if sigma > 1 else EDMEulerScheduler
        scheduler = kind(sigma_data=sigma_data, prediction_type=prediction_type)
    bound, unet = denoiser(*model, doubled=False)
    prepare(bound, conditioning(1), None, guidance_scale=1.0, time_ids=time_ids(IMAGES))
    x = latents() * sigma
    result = bound(x, sigma)

    (call,) = unet.calls
    output = tiny_unet(**call)
    if sigma_data is None:
        scheduler.sigmas = torch.tensor([sigma, 0.0])
        scheduler.timesteps = torch.tensor([call["timestep"][0]])
        seen = scheduler.scale_model_input(x, scheduler.timesteps[0])
        expected = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    else:
        seen = scheduler.precondition_inputs(x, sigma)
        timestep = scheduler.precondition_noise(sigma)
        torch.testing.assert_close(call["timestep"], timestep.expand(IMAGES))
        expected = denoised_of(x, sigma, output, *model)
    torch.testing.assert_close(call["sample"], seen)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * (1 + sigma))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("sigma", [70.0, *SIGMAS])
def test_the_edm_formulation_is_k_diffusions(sigma_data: float, sigma: float) -> None:
    try:
        original = kdiffusion.load("layers").Denoiser, kdiffusion.load("external").VDenoiser
    except kdiffusion.OracleUnavailableError as error:
        pytest.skip(str(error))
    told, ids = conditioning(1), time_ids(IMAGES)
    pooled = told.text_embeds
    assert pooled is not None
    x = latents() * sigma

    def network(scaled: Tensor, _: Tensor) -> Tensor:
        # k-diffusion's networks take the logarithm themselves: 0.25·ln σ is their c_noise.
        return tiny_unet(
            scaled,
            torch.full((IMAGES,), sigma).log() / 4,
            encoder_hidden_states=told.encoder_hidden_states,
            text_embeds=pooled,
            time_ids=ids,
        )

    noise, velocity = original[0](network, sigma_data=sigma_data), original[1](network)
    velocity.sigma_data = sigma_data
    for prediction_type, theirs in (("epsilon", noise), ("v_prediction", velocity)):
        bound, _ = denoiser(prediction_type, sigma_data, doubled=False)  # type: ignore[arg-type]
        prepare(bound, told, None, guidance_scale=1.0, time_ids=ids)
        expected = theirs(x, torch.full((IMAGES,), sigma))
        torch.testing.assert_close(bound(x, sigma), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
@of_every_model
def test_guides_the_denoised_images(model: Model, sigma: float) -> None:
    bound, _ = denoiser(*model)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    prepare(bound, positive, negative, guidance_scale=7.5, time_ids=ids)
    x = latents() * sigma

    _, unconditional = reference(x, sigma, negative, ids[:IMAGES], *model)
    _, conditional = reference(x, sigma, positive, ids[IMAGES:], *model)
    expected = unconditional + 7.5 * (conditional - unconditional)

    torch.testing.assert_close(bound(x, sigma).double(), expected, rtol=1e-5, atol=1e-5 * sigma)


def test_unconditional_half_comes_first() -> None:
    bound, unet = denoiser()
    positive, negative = conditioning(1), conditioning(2)
    prepare(bound, positive, negative, guidance_scale=2.0, time_ids=time_ids(2 * IMAGES))
    bound(latents(), 1.0)
    hidden = unet.calls[0]["encoder_hidden_states"]
    assert torch.equal(hidden[:IMAGES], negative.encoder_hidden_states)
    assert torch.equal(hidden[IMAGES:], positive.encoder_hidden_states)
    assert negative.text_embeds is not None
    assert torch.equal(unet.calls[0]["text_embeds"][:IMAGES], negative.text_embeds)
    assert torch.equal(unet.calls[0]["sample"][:IMAGES], unet.calls[0]["sample"][IMAGES:])


@of_every_model
def test_without_guidance_there_is_one_half(model: Model) -> None:
    bound, unet = denoiser(*model, doubled=False)
    positive, ids = conditioning(1), time_ids(IMAGES)
    prepare(bound, positive, None, guidance_scale=1.0, time_ids=ids)
    _, expected = reference(latents(), 1.0, positive, ids, *model)
    torch.testing.assert_close(bound(latents(), 1.0).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(unet.calls[0]["sample"]) == IMAGES


def test_timesteps_are_fractional_and_float32() -> None:
    bound, unet = denoiser()
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=5.0)
    # Half way between two training levels, in ln σ, is half way between their timesteps.
    between = math.sqrt(SCHEDULE.sigmas[500] * SCHEDULE.sigmas[501])
    for sigma in (SCHEDULE.sigma_max, between, SCHEDULE.sigma_min):
        bound(latents(), sigma)
    seen = torch.stack([call["timestep"] for call in unet.calls])
    assert seen.dtype == torch.float32
    expected = torch.tensor([999.0, 500.5, 0.0])[:, None].expand(3, 2 * IMAGES)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)


@of_every_model
def test_guidance_rescale_agrees_with_diffusers(model: Model) -> None:
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    sigma, x = 2.0, latents() * 2
    bound, _ = denoiser(*model)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    prepare(bound, positive, negative, guidance_scale=9.0, guidance_rescale=0.7, time_ids=ids)

    unconditional, _ = reference(x, sigma, negative, ids[:IMAGES], *model)
    conditional, _ = reference(x, sigma, positive, ids[IMAGES:], *model)
    guided = unconditional + 9.0 * (conditional - unconditional)
    rescaled = rescale_noise_cfg(guided, conditional, guidance_rescale=0.7)
    expected = denoised_of(x, sigma, rescaled, *model)
    torch.testing.assert_close(bound(x, sigma).double(), expected.double(), rtol=1e-5, atol=1e-4)


def test_an_inpainting_network_sees_its_channels_in_both_halves_and_unscaled() -> None:
    spec = unet_spec()
    nine = TensorSpec("sample", "float32", ("B", 2 * CHANNELS + 1, "h", "w"))
    spec = EngineSpec((nine, *spec.inputs[1:]), spec.outputs)
    unet = Recorder(
        lambda sample, **told: tiny_unet(sample[:, :CHANNELS], **told),
        [tensor.name for tensor in spec.inputs],
    )
    bound = Denoiser(
        TorchEngine(unet, spec),
        Scaling("epsilon", SCHEDULE),
        images=IMAGES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        parts=Parts(unconditional=True),
    )
    assert bound.extra_channels == CHANNELS + 1
    assert denoiser()[0].extra_channels == 0
    channels = torch.randn(IMAGES, CHANNELS + 1, HEIGHT, WIDTH)
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=5.0, extra_channels=channels)
    x = latents()
    for sigma in SIGMAS:
        bound(x, sigma)
        sample = unet.calls[-1]["sample"]
        torch.testing.assert_close(sample[:, :CHANNELS], torch.cat([x, x]) / (sigma**2 + 1) ** 0.5)
        assert torch.equal(sample[:, CHANNELS:], torch.cat([channels, channels]))


def test_half_precision_networks_are_guided_in_float32() -> None:
    """At 100-fold guidance, float16 arithmetic on the difference would be far off."""
    bound, unet = denoiser(dtype="float16")
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=100.0)
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
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=5.0)
    x = latents()
    first = bound(x, 3.0)
    assert torch.equal(x, latents())
    assert bound(x, 1.0).data_ptr() == first.data_ptr()


def test_static_inputs_are_written_again_by_prepare() -> None:
    bound, unet = denoiser()
    freeu = (1.3, 1.4, 0.9, 0.2)
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=5.0, freeu=freeu)
    bound(latents(), 1.0)
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=5.0)
    bound(latents(), 1.0)
    rows = 2 * IMAGES
    assert torch.equal(unet.calls[0]["freeu"], torch.tensor([freeu] * rows))
    assert torch.equal(unet.calls[1]["freeu"], torch.ones(rows, 4))


def test_distilled_models_take_guidance_as_an_input() -> None:
    assert not is_doubled(unet_spec(distilled=True), 8.0)
    assert is_doubled(unet_spec(), 8.0)
    assert not is_doubled(unet_spec(), 1.0)
    bound, unet = denoiser(doubled=False, distilled=True)
    prepare(bound, conditioning(1), None, guidance_scale=8.5, time_ids=time_ids(IMAGES))
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


@of_every_model
def test_hands_out_the_unconditional_result(model: Model) -> None:
    bound, _ = denoiser(*model)
    positive, negative, ids = conditioning(1), conditioning(2), time_ids(2 * IMAGES)
    with pytest.raises(RuntimeError, match="not prepared to keep its unconditional results"):
        _ = bound.unconditional
    # Guidance 1 is no guidance, and the unconditional half is still there.
    for scale in (7.5, 1.0):
        prepare(bound, positive, negative, guidance_scale=scale, time_ids=ids, unconditional=True)
        denoised = bound(latents(), 1.5).clone()
        _, expected = reference(latents(), 1.5, negative, ids[:IMAGES], *model)
        torch.testing.assert_close(bound.unconditional.double(), expected, rtol=1e-5, atol=1e-5)
        prepare(bound, positive, negative, guidance_scale=scale, time_ids=ids)
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


@of_every_model
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("doubled", "rescale", "unconditional"),
    [(True, 0.0, False), (True, 0.7, False), (True, 0.7, True), (False, 0.0, False)],
)
def test_numbers_on_the_device_give_the_same(
    model: Model, dtype: Dtype, doubled: bool, rescale: float, unconditional: bool
) -> None:
    spec = unet_spec(dtype)
    bound = Denoiser(
        TorchEngine(Halves(torch.float16 if dtype == "float16" else torch.float32), spec),
        Scaling(model[0], SCHEDULE if model[1] is None else EDM, model[1]),
        images=IMAGES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        parts=Parts(unconditional=doubled),
    )
    for guidance in (7.5, 3.0):
        prepare(
            bound,
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
            actual = bound.denoise(x, on_device(bound, sigma))
            torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6 * (1 + sigma))
            if unguided is not None:
                torch.testing.assert_close(
                    bound.unconditional, unguided, rtol=2e-6, atol=2e-6 * (1 + sigma)
                )


def test_the_guidance_scale_is_no_part_of_what_is_captured() -> None:
    """Work recorded once gives the results of whatever `prepare` says later."""
    bound, _ = denoiser()
    x = latents()
    modes = set()
    for guidance in (2.0, 9.0):
        prepare(bound, conditioning(1), conditioning(2), guidance_scale=guidance)
        modes.add(bound.mode())
        actual = bound.denoise(x, on_device(bound, 1.0)).clone()
        torch.testing.assert_close(actual, bound(x, 1.0))
    prepare(bound, conditioning(1), conditioning(2), guidance_scale=2.0, guidance_rescale=0.5)
    modes.add(bound.mode())
    assert len(modes) == 2
