"""From a request to images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import kdrt
from kdrt.bundle import Dtype
from kdrt.sampling import (
    SAMPLERS,
    SCHEDULES,
    NoiseSchedule,
    SeededNoise,
    make_plan,
    sample,
    sigmas_for,
)
from kdrt_engines import Binding
from tests.support.image_arrays import as_tensor
from tests.support.tiny_model import (
    CHANNELS,
    FREEU,
    FREEU_OF_BATCH,
    GUIDANCE_WIDTH,
    SCALE,
    WIDTHS,
    Family,
    TinyModel,
    tiny_model,
    tiny_unet,
)

PROMPTS = ["a red circle", "a green square"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16")


def test_defaults_are_the_models(sdxl: TinyModel) -> None:
    result = sdxl.pipeline("a red circle", seed=7)
    (image,) = result.images
    assert isinstance(image, Image.Image)
    assert image.size == (48, 64)
    assert len(sdxl.unet.calls) == 20
    assert result.infotexts[0].guidance_scale == 5.0
    assert result.seeds == [7]


def test_each_call_runs_the_unet_once_on_both_halves(sdxl: TinyModel) -> None:
    sdxl.pipeline(PROMPTS, steps=2, seed=0)
    assert [len(call["sample"]) for call in sdxl.unet.calls] == [4, 4]


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_no_guidance_is_half_the_work(sdxl: TinyModel, guidance_scale: float) -> None:
    sdxl.pipeline(PROMPTS, "blurry", steps=2, seed=0, guidance_scale=guidance_scale)
    assert [len(call["sample"]) for call in sdxl.unet.calls] == [2, 2]
    assert len(sdxl.text_encoders[0].calls) == 2


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral"])
def test_a_seed_is_the_same_image_alone_and_in_a_batch(sdxl: TinyModel, sampler: str) -> None:
    def make(prompt: str | list[str], seed: int | list[int]) -> np.ndarray:
        options = {"steps": 4, "sampler": sampler, "output_type": "np"}
        pipe: Any = sdxl.pipeline
        return pipe(prompt, "blurry", seed=seed, **options).images

    batch = make(PROMPTS, [11, 5])
    assert np.array_equal(batch[:1], make(PROMPTS[0], 11))
    assert np.array_equal(batch[1:], make(PROMPTS[1], 5))
    assert not np.array_equal(batch[0], batch[1])
    assert np.array_equal(batch, make(PROMPTS, [11, 5]))


def test_images_of_a_prompt_follow_each_other(sdxl: TinyModel) -> None:
    result = sdxl.pipeline(PROMPTS, images_per_prompt=2, steps=2, seed=40, output_type="pt")
    assert result.images.shape == (4, 3, 64, 48)
    assert result.seeds == [40, 41, 42, 43]
    assert [p.prompt for p in result.infotexts] == [p for p in PROMPTS for _ in range(2)]
    alone = sdxl.pipeline(PROMPTS[1], steps=2, seed=42, output_type="pt")
    assert torch.equal(result.images[2:3], alone.images)


def test_seeds_are_drawn_and_reported(sdxl: TinyModel) -> None:
    torch.manual_seed(0)
    first = sdxl.pipeline("a", steps=1, output_type="np")
    torch.manual_seed(0)
    second = sdxl.pipeline("a", steps=1, output_type="np")
    assert first.seeds != second.seeds
    again = sdxl.pipeline("a", steps=1, output_type="np", seed=first.seeds)
    assert np.array_equal(first.images, again.images)


def test_given_latents_are_scaled_by_the_first_sigma(sdxl: TinyModel) -> None:
    latents = torch.randn(1, CHANNELS, 8, 6, dtype=torch.float64)
    sigmas = [3.0, 1.0, 0.0]
    sdxl.pipeline("a", latents=latents, sigmas=sigmas, guidance_scale=1)
    seen = sdxl.unet.calls[0]["sample"]
    expected = latents.float() * 3.0 / (3.0**2 + 1) ** 0.5
    torch.testing.assert_close(seen, expected)
    assert len(sdxl.unet.calls) == 2


def test_no_negative_prompt_is_zeros_and_an_empty_one_is_not(sdxl: TinyModel) -> None:
    sdxl.pipeline("a", steps=1, seed=0)
    sdxl.pipeline("a", "", steps=1, seed=0)
    none, empty = (call["encoder_hidden_states"][0] for call in sdxl.unet.calls)
    assert not none.any()
    assert not sdxl.unet.calls[0]["text_embeds"][0].any()
    assert empty.any()
    assert sdxl.unet.calls[0]["encoder_hidden_states"][1].any()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_without_zeros_no_negative_prompt_is_an_empty_one(
    tmp_path: Path, family: Literal["sd", "sdxl"]
) -> None:
    model = tiny_model(tmp_path, family, zeros_for_empty_negative=False)
    for negative in (None, ""):
        model.pipeline("a", negative, steps=1, seed=0)
    none, empty = (call["encoder_hidden_states"] for call in model.unet.calls)
    assert torch.equal(none, empty)


def test_second_prompts_reach_the_second_encoder_only(sdxl: TinyModel) -> None:
    prompts = {"prompt_2": "b", "negative_prompt_2": "d"}
    pipe: Any = sdxl.pipeline
    pipe("a", "c", steps=1, seed=0, **prompts)
    sdxl.pipeline("a", "c", steps=1, seed=0)
    both, same = (call["encoder_hidden_states"] for call in sdxl.unet.calls)
    assert torch.equal(both[..., : WIDTHS[0]], same[..., : WIDTHS[0]])
    assert not torch.equal(both[0, ..., WIDTHS[0] :], same[0, ..., WIDTHS[0] :])
    assert not torch.equal(both[1, ..., WIDTHS[0] :], same[1, ..., WIDTHS[0] :])


def test_a_second_negative_prompt_alone_is_not_ignored(sdxl: TinyModel) -> None:
    sdxl.pipeline("a", steps=1, seed=0, negative_prompt_2="d")
    assert sdxl.unet.calls[0]["encoder_hidden_states"][0].any()


def test_clip_skip_leaves_the_negative_prompt_alone(sdxl: TinyModel) -> None:
    for clip_skip in (None, 0, 1):
        sdxl.pipeline("a", "b", steps=1, seed=0, clip_skip=clip_skip)
    none, zero, one = (call["encoder_hidden_states"] for call in sdxl.unet.calls)
    assert torch.equal(none, zero)
    assert torch.equal(none[0], one[0])
    assert not torch.equal(none[1], one[1])


def test_negative_sizes_pair_with_the_negative_half(sdxl: TinyModel) -> None:
    sdxl.pipeline(
        PROMPTS,
        steps=1,
        seed=0,
        original_size=(512, 256),
        crops_coords_top_left=(3, 4),
        negative_original_size=(100, 200),
        negative_crops_coords_top_left=(1, 2),
    )
    positive = [512, 256, 3, 4, 64, 48]
    negative = [100, 200, 1, 2, 64, 48]
    seen = sdxl.unet.calls[0]["time_ids"].tolist()
    assert seen == [negative, negative, positive, positive]


def test_sizes_default_to_the_image(sdxl: TinyModel) -> None:
    sdxl.pipeline("a", steps=1, seed=0, height=32, width=40, original_size=(512, 256))
    seen = sdxl.unet.calls[0]["time_ids"].tolist()
    assert seen == [[512, 256, 0, 0, 32, 40]] * 2


class ByHand:
    """Denoised images of a model's tiny UNet with guidance, its velocity put to use by hand.

    Text and sizes are those of the first call that the UNet was given.
    """

    def __init__(self, model: TinyModel, guidance_scale: float) -> None:
        call = model.unet.calls[0]
        self._given = {n: t for n, t in call.items() if n not in ("sample", "timestep")}
        self._guidance_scale = guidance_scale
        facts = model.manifest.scheduler
        betas = np.linspace(facts.beta_start**0.5, facts.beta_end**0.5, 1000) ** 2
        kept = np.cumprod(1 - betas)
        self._log_sigmas = np.log((1 - kept) / kept) / 2

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = np.interp(np.log(sigma), self._log_sigmas, np.arange(1000))
        scale = 1 / (sigma**2 + 1) ** 0.5
        sample, timesteps = torch.cat([x * scale] * 2), torch.full((2,), timestep).float()
        velocity = tiny_unet(sample, timesteps, **self._given)
        self.unconditional, conditional = x * scale**2 - sigma * scale * velocity[:, None]
        return self.unconditional + self._guidance_scale * (conditional - self.unconditional)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_run_on_the_networks_denoised_images(
    tmp_path: Path, family: Family, sampler: str
) -> None:
    model = tiny_model(tmp_path, family, prediction_type="v_prediction")
    sigmas = [9.0, 3.0, 0.8, 0.0]
    images = model.pipeline(
        "a", "b", sigmas=sigmas, seed=5, sampler=sampler, guidance_scale=3.0, output_type="latent"
    ).images
    planned, source = make_plan(sampler, sigmas), SeededNoise([5], (CHANNELS, 8, 6))
    noise = source.draw(planned.slots) if planned.slots else None
    expected = sample(planned, source.latents() * sigmas[0], ByHand(model, 3.0), noise)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_walked_to_its_end(sd: TinyModel, schedule: str) -> None:
    seen: list[float] = []
    sd.pipeline("a", steps=3, seed=0, schedule=schedule, callback=lambda s: seen.append(s.sigma))
    table = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
    name = "leading" if schedule == "scheduler" else schedule  # the checkpoint's own
    expected = sigmas_for(name, 3, table, steps_offset=1)
    assert seen == pytest.approx(expected[:-1])
    assert len(sd.unet.calls) == 3


def test_half_precision_rounds_and_nothing_else(tmp_path: Path) -> None:
    images = []
    for dtype in DTYPES:
        model = tiny_model(tmp_path / dtype, dtype=dtype, distilled=True, freeu=None)
        result = model.pipeline(PROMPTS, steps=2, seed=0, output_type="latent")
        assert model.unet.calls[0]["sample"].dtype == getattr(torch, dtype)
        images.append(as_tensor(result.images))
    full, half = images
    assert 0 < (half - full).norm() / full.norm() < 5e-3


def test_a_distilled_model_takes_the_guidance_as_an_input(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, distilled=True)
    for guidance_scale in (2.0, 2.0, 8.0):
        model.pipeline(PROMPTS, steps=1, seed=0, guidance_scale=guidance_scale)
    first, again, other = (call["timestep_cond"] for call in model.unet.calls)
    assert first.shape == (len(PROMPTS), GUIDANCE_WIDTH)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_freeu_reaches_the_unet_for_one_call(sdxl: TinyModel) -> None:
    sdxl.pipeline("a", steps=1, seed=0, freeu=(1.3, 1.4, 0.9, 0.2))
    sdxl.pipeline("a", steps=1, seed=0)
    first, second = (call["freeu"] for call in sdxl.unet.calls)
    torch.testing.assert_close(first, torch.tensor([[1.3, 1.4, 0.9, 0.2]] * 2))
    assert torch.equal(second, torch.ones(2, 4))


@pytest.mark.parametrize("deep", [False, True])
def test_a_unet_with_one_freeu_for_a_batch_makes_the_same_image(tmp_path: Path, deep: bool) -> None:
    """As bundles were exported before every image had strengths of its own."""
    freeu = (1.3, 1.4, 0.9, 0.2)
    made = {}
    for name, shape in (("rows", FREEU), ("batch", FREEU_OF_BATCH)):
        model = tiny_model(tmp_path / name, freeu=shape, deep=deep)
        on = model.pipeline(PROMPTS, steps=2, seed=0, freeu=freeu, output_type="np")
        off = model.pipeline(PROMPTS, steps=2, seed=0, output_type="np")
        made[name] = on.images
        assert not np.array_equal(off.images, on.images)
        told = model.unet.calls[0]["freeu"]
        assert told.shape == ((4,) if shape == FREEU_OF_BATCH else (2 * len(PROMPTS), 4))
    assert np.array_equal(made["rows"], made["batch"])


def test_output_types_agree(sdxl: TinyModel) -> None:
    def make(output_type: str) -> kdrt.Result[Any]:
        pipe: Any = sdxl.pipeline
        result: kdrt.Result[Any] = pipe(PROMPTS, steps=2, seed=0, output_type=output_type)
        return result

    pt, array, pil, latent = (make(kind).images for kind in ("pt", "np", "pil", "latent"))
    assert pt.shape == (2, 3, 64, 48)
    assert pt.dtype == torch.float32
    assert 0 <= pt.min() <= pt.max() <= 1
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack([np.asarray(i) for i in pil]), (array * 255).round())
    assert latent.shape == (2, CHANNELS, 64 // SCALE, 48 // SCALE)
    torch.testing.assert_close((latent[:, :3].tanh() / 2 + 0.5), pt[..., ::SCALE, ::SCALE])


def test_callback_sees_every_step(sdxl: TinyModel) -> None:
    seen: list[tuple[int, float, float]] = []

    def callback(step: kdrt.Step) -> None:
        assert step.latents.shape == step.denoised.shape == (1, CHANNELS, 8, 6)
        seen.append((step.index, step.sigma, step.sigma_next))

    sdxl.pipeline("a", sigmas=[3.0, 1.0, 0.0], seed=0, callback=callback)
    assert seen == [(0, 3.0, 1.0), (1, 1.0, 0.0)]


def test_a_callback_can_stop_a_run(sdxl: TinyModel) -> None:
    def callback(step: kdrt.Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdxl.pipeline("a", steps=9, seed=0, callback=callback)
    assert len(sdxl.unet.calls) == 1
    assert sdxl.pipeline("a", steps=2, seed=0).images


def test_truncation_is_warned_of_and_reported(sdxl: TinyModel) -> None:
    long = "a red circle " * 10
    for _ in range(2):
        with pytest.warns(kdrt.TruncationWarning, match="too long") as caught:
            result = sdxl.pipeline(long, "blurry", steps=1, seed=0)
        assert [t.prompt for t in result.truncations] == [long]
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sdxl.pipeline("a", "blurry", steps=1, seed=0).truncations == ()


def test_progress_goes_to_standard_error(
    sdxl: TinyModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdxl.pipeline("a", steps=2, seed=0)
    sdxl.pipeline("a", steps=2, seed=0, progress=True)
    assert capsys.readouterr() == ("", "")  # no terminal, no bar
    monkeypatch.setenv("FORCE_COLOR", "1")
    sdxl.pipeline("a", steps=2, seed=0, progress=True)
    output, error = capsys.readouterr()
    assert not output
    assert "Sampling" in error


@pytest.mark.parametrize("part", ["unet", "vae_decoder"])
def test_a_broken_image_is_an_error(sdxl: TinyModel, part: str) -> None:
    network = getattr(sdxl, part).network
    broken = sdxl.unet if part == "unet" else sdxl.vae_decoder
    broken.network = lambda **inputs: network(**inputs) * float("nan")
    words = {
        "unet": "latents.*--precision fp32 or bf16",
        "vae_decoder": "VAE.*--vae-precision fp32 or bf16.*--vae madebyollin/sdxl-vae-fp16-fix",
    }
    with pytest.raises(kdrt.NonFiniteError, match=words[part]):
        sdxl.pipeline("a", steps=2, seed=0)


def test_buffers_are_kept_by_size(sdxl: TinyModel) -> None:
    unet = sdxl.pipeline.engines["unet"]
    bound: list[dict[str, int]] = []
    bind = unet.bind

    def noted(**dims: int) -> Binding:
        bound.append(dims)
        return bind(**dims)

    unet.bind = noted  # type: ignore[method-assign]
    for width in (48, 48, 64, 48):
        sdxl.pipeline("a", steps=1, seed=0, width=width)
    sdxl.pipeline("a", steps=1, seed=0, guidance_scale=1)
    assert [(dims["B"], dims["w"]) for dims in bound] == [(2, 6), (2, 8), (1, 6)]


def test_images_are_decoded_one_by_one(sdxl: TinyModel) -> None:
    sdxl.pipeline(PROMPTS, steps=1, seed=0)
    assert [len(call["latents"]) for call in sdxl.vae_decoder.calls] == [1, 1]


@pytest.mark.parametrize("options", [{}, {"eta": 0.6}])
def test_an_adaptive_image_does_not_depend_on_its_batch(
    sdxl: TinyModel, options: dict[str, float]
) -> None:
    def make(prompt: str | list[str], seed: int | list[int]) -> np.ndarray:
        return sdxl.pipeline(
            prompt,
            "blurry",
            seed=seed,
            steps=4,
            sampler="dpm_adaptive",
            sampler_options=options,
            output_type="np",
        ).images

    batch = make(PROMPTS, [11, 5])
    assert {len(call["sample"]) for call in sdxl.unet.calls} == {2}  # one image, two halves
    assert np.array_equal(batch[:1], make(PROMPTS[0], 11))
    assert np.array_equal(batch[1:], make(PROMPTS[1], 5))


@pytest.mark.parametrize("guidance_scale", [0.6, 1.0, 1.5])
def test_cfg_pp_keeps_the_unconditional_noise(sdxl: TinyModel, guidance_scale: float) -> None:
    """x' = D + t·(x - U)/s in the pipeline, from the halves that the UNet was asked for."""
    sigmas, shape = [3.0, 1.0], (1, CHANNELS, 64 // SCALE, 48 // SCALE)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    arguments = {"latents": x, "sigmas": sigmas, "seed": 0, "output_type": "latent"}

    def latents(**options: Any) -> torch.Tensor:
        pipe: Any = sdxl.pipeline
        return pipe("a", "b", **arguments, **options).images.double()

    result = latents(sampler="euler_cfg_pp", guidance_scale=guidance_scale)
    assert len(sdxl.unet.calls[-1]["sample"]) == 2
    # Euler without the suffix gives D for each half: x' = x/3 + D·2/3.
    start = x.double() * 3
    conditional = (latents(sampler="euler", guidance_scale=1.0) - start / 3) * 3 / 2
    guided_by_2 = (latents(sampler="euler", guidance_scale=2.0) - start / 3) * 3 / 2
    unconditional = 2 * conditional - guided_by_2
    guided = unconditional + guidance_scale * (conditional - unconditional)
    expected = guided + (start - unconditional) / 3
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)


def test_cfg_pp_is_refused_by_distilled_models(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, distilled=True)
    with pytest.raises(
        kdrt.InvalidRequestError, match="euler_cfg_pp needs results without guidance"
    ):
        model.pipeline("a", sampler="euler_cfg_pp")


@pytest.mark.parametrize(
    ("sampler", "options", "label"),
    [
        ("dpmpp_2m_sde_heun", {}, "DPM++ 2M SDE Heun"),
        ("DPM++ 2M SDE Heun", {"solver_type": "midpoint"}, "DPM++ 2M SDE"),
        ("uni_pc_bh2", {}, "UniPC bh2"),
        ("uni_pc", {}, "UniPC"),
    ],
)
def test_the_parameters_name_what_ran(
    sdxl: TinyModel, sampler: str, options: dict[str, str], label: str
) -> None:
    result = sdxl.pipeline("a", steps=2, seed=0, sampler=sampler, sampler_options=options)
    assert result.infotexts[0].sampler == label
