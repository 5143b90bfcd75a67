"""What the removed pipelines got wrong, each with its own assertion."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdrt.bundle import EdmFacts
from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.compat.grid import karras_grid
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines.torch_eager import TorchEngine
from tests.support.checkpoints import save_checkpoint
from tests.support.eager import torch_engines

pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")
SIZE = {"height": 24, "width": 16, "output_type": "latent"}


def make(pipe: Any, prompt: Any = "blue", steps: int = 2, **options: Any) -> torch.Tensor:
    options = {"generator": torch.Generator().manual_seed(0)} | SIZE | options
    return pipe(prompt, num_inference_steps=steps, **options).images


def rows(engine: Any) -> list[int]:
    """The batch sizes an engine is bound to from now on."""
    seen: list[int] = []
    bind = engine.bind

    def recording(**dims: int) -> Any:
        seen.append(dims["B"])
        return bind(**dims)

    engine.bind = recording
    return seen


def test_a_default_sampler_and_names_with_and_without_prefix(sd: Any) -> None:
    pipe = sd.pipe()
    assert pipe.sampler == "dpmpp_2m"
    for name in ("sample_heun", "heun"):
        pipe.set_scheduler(name)
        assert pipe.sampler == "heun"
    for wrong in ("append_zero", "to_d", "sample_nonsense", "sample_dpm_adaptive_", 3):
        with pytest.raises(ValueError, match="Invalid scheduler type"):
            pipe.set_scheduler(wrong)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_one_step_gives_the_denoised_image(sd: Any, sampler: str, exact: bool) -> None:
    pipe = sd.pipe()
    pipe.set_scheduler("euler")
    expected = make(pipe, steps=1, use_karras_sigmas=True)
    pipe.set_scheduler(sampler)
    out = make(pipe, steps=1, use_karras_sigmas=True, exact=exact)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_no_guidance_runs_one_batch(sd: Any, exact: bool) -> None:
    pipe = sd.pipe(exact=exact)
    engine = TorchEngine(sd.torch_engines["unet"].module, sd.torch_engines["unet"].spec)
    pipe.pipeline.replace_engines({"unet": engine})
    seen = rows(engine)
    make(pipe, guidance_scale=1.0)
    make(pipe, guidance_scale=1.5)
    assert seen == [1, 2]
    assert pipe.guidance_scale == 1.5
    assert pipe.do_classifier_free_guidance


def test_time_ids_are_paired_with_their_prompts(sdxl: Any) -> None:
    pipe = sdxl.pipe()
    options: dict[str, Any] = {"negative_original_size": (8, 8), "negative_target_size": (8, 8)}
    seeds = [torch.Generator().manual_seed(i) for i in (4, 5)]
    both = make(pipe, ["blue", "blue"], generator=seeds, **options)
    alone = make(pipe, "blue", generator=torch.Generator().manual_seed(5), **options)
    # Of the whole: single numbers near 0 depend on how a processor sums a batch.
    assert (both[1:] - alone).norm() <= 1e-5 * alone.norm()


@pytest.mark.parametrize("name", ["negative_original_size", "negative_target_size"])
def test_either_negative_size_counts(sdxl: Any, name: str) -> None:
    pipe = sdxl.pipe()
    smaller: dict[str, Any] = {name: (512, 512)}
    assert not torch.equal(make(pipe), make(pipe, **smaller))


@pytest.mark.parametrize("exact", [False, True])
def test_callbacks_are_called(tiny: Any, exact: bool) -> None:
    pipe, calls = tiny.pipe(exact=exact), []
    out = make(pipe, steps=4, callback=lambda *call: calls.append(call), callback_steps=2)
    assert [index for index, _, _ in calls] == [0, 2]
    assert calls[0][1] == 999
    calls.clear()
    out = make(pipe, steps=3, callback=lambda *call: calls.append(call))
    assert torch.equal(calls[-1][2], out)


@pytest.mark.parametrize("exact", [False, True])
def test_noise_seeds_come_from_the_generator(tiny: Any, exact: bool) -> None:
    pipe = tiny.pipe(exact=exact)
    pipe.set_scheduler("dpmpp_2m_sde")
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(make(pipe))
    assert torch.equal(*results)
    generators = [torch.Generator().manual_seed(i) for i in (1, 0)]
    both = make(pipe, ["blue", "blue"], generator=generators)
    torch.testing.assert_close(both[1:], results[0], rtol=1e-2, atol=1e-3)


def test_latents_and_generators_are_checked(tiny: Any) -> None:
    pipe = tiny.pipe()
    with pytest.raises(ValueError, match="expected"):
        make(pipe, latents=torch.zeros(1, 4, 5, 5))
    with pytest.raises(ValueError, match="2 generators for 1 images"):
        make(pipe, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="noise_sampler_seed"):
        make(pipe, noise_sampler_seed=[1, 2])
    half = torch.randn(1, 4, 12, 8).half()
    assert torch.equal(make(pipe, latents=half), make(pipe, latents=half.float()))


def test_one_negative_prompt_serves_all(tiny: Any) -> None:
    pipe = tiny.pipe()
    seeds = [torch.Generator().manual_seed(i) for i in (4, 5)]
    one = make(pipe, ["blue", "red"], generator=seeds, negative_prompt="a star")
    seeds = [torch.Generator().manual_seed(i) for i in (4, 5)]
    each = make(pipe, ["blue", "red"], generator=seeds, negative_prompt=["a star"] * 2)
    assert torch.equal(one, each)


@pytest.mark.parametrize("exact", [False, True])
def test_a_replaced_unet_is_used(sd: Any, exact: bool) -> None:
    class Zero(nn.Module):
        def forward(self, sample: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(sample)

    pipe = sd.pipe(exact=exact)
    before = make(pipe)
    engine = TorchEngine(Zero(), sd.torch_engines["unet"].spec)
    pipe.pipeline.replace_engines({"unet": engine})
    noise = torch.randn(1, 4, 12, 8)
    assert not torch.equal(make(pipe), before)
    pipe.set_scheduler("euler")
    # With ε = 0 the state never moves.
    sigma = float(pipe.scheduler.sigmas.max())
    torch.testing.assert_close(make(pipe, latents=noise), noise * sigma)


def test_the_progress_bar_obeys(sd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = sd.pipe()
    pipe.set_progress_bar_config(disable=True)
    make(pipe)
    assert capfd.readouterr().err == ""


def test_zero_is_a_value_of_freeu(tiny: Any) -> None:
    pipe = tiny.pipe()
    off = make(pipe)
    pipe.enable_freeu(s1=0.0, s2=1.0, b1=1.0, b2=1.0)
    assert not torch.equal(make(pipe), off)
    pipe.disable_freeu()
    assert torch.equal(make(pipe), off)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_deterministic_samplers_leave_the_global_generator_alone(sd: Any, sampler: str) -> None:
    pipe = sd.pipe(exact=False)
    pipe.set_scheduler(sampler)
    before = torch.get_rng_state()
    make(pipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs(tiny: Any) -> None:
    pipe = tiny.pipe()
    size = {"height": 24, "width": 16, "num_inference_steps": 2}
    out = pipe("blue", **size)
    assert out.images[0].size == (16, 24)
    assert out[0] is out["images"] is out.images
    assert pipe("blue", output_type="np", **size).images.shape == (1, 24, 16, 3)
    assert pipe("blue", output_type="pt", **size).images.shape == (1, 3, 24, 16)
    as_tuple = pipe("blue", output_type="latent", return_dict=False, **size)
    assert as_tuple[0].shape == (1, 4, 12, 8)
    assert len(as_tuple) == (2 if tiny.family == "sd" else 1)
    with pytest.raises(ValueError, match="output_type"):
        pipe("blue", output_type="jpg", **size)


def test_positional_arguments(sd: Any, sdxl: Any) -> None:
    arguments = (24, 16, 2, 3.0)
    images = sd.pipe()("blue", *arguments, "red", 2, 0.0, None, None, None, None, "pt").images
    assert images.shape == (2, 3, 24, 16)
    images = sdxl.pipe()("blue", "red", *arguments, "red", None, 2, *(None,) * 6, "pt").images
    assert images.shape == (2, 3, 24, 16)


SIGNATURES = {
    StableDiffusionKDiffusionPipeline: """prompt height width num_inference_steps guidance_scale
        negative_prompt num_images_per_prompt eta generator latents prompt_embeds
        negative_prompt_embeds output_type return_dict callback callback_steps use_karras_sigmas
        noise_sampler_seed clip_skip""",
    StableDiffusionXLKDiffusionPipeline: """prompt prompt_2 height width num_inference_steps
        guidance_scale negative_prompt negative_prompt_2 num_images_per_prompt generator latents
        prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds
        output_type return_dict original_size crops_coords_top_left target_size
        negative_original_size negative_crops_coords_top_left negative_target_size
        use_karras_sigmas noise_sampler_seed clip_skip""",
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_the_signature_is_the_originals(kind: Any) -> None:
    parameters = inspect.signature(kind.__call__).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", *SIGNATURES[kind].split()]


def test_what_cannot_be_is_refused(sd: Any, sdxl: Any) -> None:
    pipe = sd.pipe()
    for options, reason in (
        ({"height": 20}, "divisible by 8"),
        ({"prompt_embeds": torch.zeros(1, 16, 32)}, "only one of"),
        ({"clip_skip": 9}, "clip_skip"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"exact": False, "compat_dtype": True}, "exact"),
        ({"callback_steps": 0}, "callback_steps"),
    ):
        with pytest.raises(InvalidRequestError, match=reason):
            make(pipe, **options)
    with pytest.raises(InvalidRequestError, match="pooled_prompt_embeds"):
        make(sdxl.pipe(), None, prompt_embeds=torch.zeros(1, 16, 64))
    with pytest.raises(InvalidRequestError, match="StableDiffusionXLKDiffusionPipeline"):
        StableDiffusionKDiffusionPipeline(sdxl.pipe().pipeline)


def test_what_the_safety_checker_flags_is_black(sd: Any) -> None:
    pipe, size = sd.pipe(), {"height": 24, "width": 16, "num_inference_steps": 2}
    prompts = ["blue", "a star"]

    def images(**options: Any) -> Any:
        seeds = [torch.Generator().manual_seed(i) for i in (4, 5)]
        return pipe(prompts, generator=seeds, output_type="np", **size, **options)

    plain = images()
    assert plain.nsfw_content_detected is None
    seen: list[Any] = []

    def checker(images: list[Any]) -> list[bool]:
        seen.extend(images)
        return [False, True]

    pipe.safety_checker = checker
    checked = images()
    assert checked.nsfw_content_detected == [False, True]
    assert [image.size for image in seen] == [(16, 24)] * 2
    assert (checked.images[0] == plain.images[0]).all()
    assert not checked.images[1].any()
    assert images(return_dict=False)[1] == [False, True]
    image, flags = pipe.run_safety_checker(torch.rand(2, 3, 24, 16), "cpu", torch.float32)
    assert flags == [False, True]
    assert not image[1].any()
    latents = pipe(prompts, output_type="latent", **size)
    assert latents.nsfw_content_detected is None
    pipe.safety_checker = None
    assert images().nsfw_content_detected is None


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_samplers_that_lay_their_own_steps(tiny: Any, sampler: str) -> None:
    """They raised a TypeError."""
    pipe = tiny.pipe(exact=False)
    pipe.set_scheduler(f"sample_{sampler}")
    seeds = [torch.Generator().manual_seed(i) for i in (4, 5)]
    both = make(pipe, ["blue", "a star"], steps=6, generator=seeds, use_karras_sigmas=True)
    one = torch.Generator().manual_seed(5)
    alone = make(pipe, "a star", steps=6, generator=one, use_karras_sigmas=True)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidRequestError, match="leave exact=True out"):
        make(pipe, exact=True)
    # The adaptive one is sensitive to the last bits of the table, which is rounded in compat.
    denoising = pipe.pipeline.denoising
    table = pipe._native_table.noise_schedule
    denoising._scaling = dataclasses.replace(denoising._scaling, noise_schedule=table)
    denoising.clear()
    native = pipe.pipeline(
        "a star",
        negative_prompt="" if tiny.family == "sd" else None,
        sigmas=karras_grid(pipe._native_table, 6).tolist(),
        sampler=sampler,
        guidance_scale=7.5 if tiny.family == "sd" else 5.0,
        height=24,
        width=16,
        latents=torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(5)),
        output_type="latent",
    ).images
    torch.testing.assert_close(alone, native, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_distilled_models_are_told_the_guidance(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The original met an AttributeError: it never filled timestep_cond."""
    tiny = request.getfixturevalue(kind)
    changes = {"time_cond_proj_dim": 12}
    engines = torch_engines(save_checkpoint(tmp_path / kind, kind, unet_changes=changes))
    pipe = type(tiny.pipe())(Pipeline(tiny.bundle, engines), engine="torch")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.time_cond_proj_dim == 12
    seen = rows(engines["unet"])
    results = [make(pipe, guidance_scale=scale, exact=True) for scale in (2.0, 8.0)]
    assert seen == [1, 1]
    assert not pipe.do_classifier_free_guidance
    assert not torch.equal(*results)
    native = make(pipe, guidance_scale=8.0)
    torch.testing.assert_close(native, results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"edm": EdmFacts(sigma_min=0.1, sigma_max=9, sigma_data=1, sigma_schedule="karras")},
            "was trained in the EDM formulation",
        ),
        ({"prediction_type": "sample"}, "was trained to predict the image itself"),
    ],
)
def test_models_that_the_pipelines_never_knew_are_refused(
    tiny: Any, facts: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"{words}, .* use kdrt.load"):
        tiny.pipe(**facts)
