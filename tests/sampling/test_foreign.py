"""Samplers that are not ours, through a pipeline: k-diffusion's own, and functions like them."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kdrt
from kdrt.bundle import EdmFacts
from kdrt.sampling import SAMPLERS, k_diffusion
from tests.support.image_arrays import as_tensor
from tests.support.tiny_model import TinyModel, tiny_model

NATIVE = (
    "euler",
    "heun",
    "dpm_2",
    "lms",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
)
ORIGINALS = (*NATIVE, "dpm_fast", "dpm_adaptive")
FIRST_SIGMA = 14.6

needs_k_diffusion = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("k_diffusion", "torchsde", "torchdiffeq", "scipy"))),
    reason="k-diffusion is not installed",
)


def latents_of(model: TinyModel, sampler: Any, seed: Any = (3, 9), **arguments: Any) -> Tensor:
    prompts = ["a red circle", "a green square"][: len(seed)]
    arguments = {"steps": 6, "output_type": "latent", **arguments}
    arguments |= {"sampler": sampler, "seed": list(seed)}
    return as_tensor(model.pipeline(prompts, "blurry", **arguments).images)


@needs_k_diffusion
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_make_our_images(sdxl: TinyModel, name: str) -> None:
    """With the images' own noise in the order of our plans, Brownian correlation included."""
    theirs = latents_of(sdxl, f"k_diffusion.sample_{name}")
    assert theirs.isfinite().all()
    assert torch.equal(theirs, latents_of(sdxl, f"k_diffusion.sampling.sample_{name}"))
    if name in NATIVE:
        ours = latents_of(sdxl, name)
        # k-diffusion's dpmpp_sde takes its σ through float32 exp and log: the noise's correlation
        # is off by as much.
        tolerance = 1e-4 if name == "dpmpp_sde" else 1e-5
        torch.testing.assert_close(theirs, ours, rtol=0, atol=tolerance * FIRST_SIGMA)


@needs_k_diffusion
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_of_the_originals_is_ours(sdxl: TinyModel, name: str) -> None:
    options = {"s_churn": 3.0}
    theirs = latents_of(sdxl, f"k_diffusion.sample_{name}", sampler_options=options)
    ours = latents_of(sdxl, name, sampler_options=options)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * FIRST_SIGMA)


@needs_k_diffusion
@pytest.mark.parametrize("name", [n for n in ORIGINALS if n != "dpm_adaptive"])
def test_an_image_does_not_depend_on_its_batch(sdxl: TinyModel, name: str) -> None:
    sampler = f"k_diffusion.sample_{name}"
    options = {"s_churn": 2.0} if name in ("euler", "heun", "dpm_2") else None
    batch = latents_of(sdxl, sampler, sampler_options=options)
    alone = latents_of(sdxl, sampler, seed=(3,), sampler_options=options)
    assert torch.equal(batch[:1], alone)


@needs_k_diffusion
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m_sde", "heun"])
def test_every_step_is_the_step_of_our_plan(sdxl: TinyModel, name: str) -> None:
    def seen(sampler: str) -> list[tuple[Any, ...]]:
        generation = sdxl.pipeline.stream("a", steps=5, seed=1, sampler=sampler)
        return [
            (s.index, s.sigma, s.sigma_next, s.latents.clone(), s.denoised.clone())
            for s in generation
        ]

    theirs, ours = seen(f"k_diffusion.sample_{name}"), seen(name)
    assert len(theirs) == len(ours) == 5
    for their, our in zip(theirs, ours, strict=True):
        assert their[0] == our[0]
        assert their[1:3] == pytest.approx(our[1:3], rel=1e-6)
        torch.testing.assert_close(their[3], our[3], rtol=0, atol=1e-5 * FIRST_SIGMA)
        if name != "heun":  # there, ours is the result of the second evaluation
            torch.testing.assert_close(their[4], our[4], rtol=0, atol=1e-5 * FIRST_SIGMA)


def wandering(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    strength: float = 0.1,
) -> Tensor:
    """Euler, with noise of three kinds, as an extension might write it."""
    extra_args = {} if extra_args is None else extra_args
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        if callback is not None:
            callback(
                {"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised}
            )
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        x = x + torch.randn_like(x) * strength + torch.randn(x.shape) * strength
        x = x + torch.rand(()) * strength
    return x


def test_a_function_of_ones_own(sdxl: TinyModel) -> None:
    result = sdxl.pipeline("a red circle", steps=4, seed=5, sampler=wandering)
    assert len(sdxl.unet.calls) == 4
    assert result.infotexts[0].sampler == "wandering"
    assert "Sampler: wandering" in str(result.infotexts[0])


def test_the_callers_random_numbers_are_left_alone(sdxl: TinyModel) -> None:
    def drawn(run: bool) -> tuple[list[float], Tensor | None]:
        torch.manual_seed(0)
        numbers = [float(torch.rand(()))]
        if not run:
            return numbers + [float(torch.rand(())) for _ in range(4)], None
        generation = sdxl.pipeline.stream(
            "a", steps=4, seed=5, sampler=wandering, output_type="latent"
        )
        numbers += [float(torch.rand(())) for _ in generation]
        return numbers, as_tensor(generation.result().images)

    with_run, first = drawn(True)
    without, _ = drawn(False)
    assert with_run == without
    torch.manual_seed(99)
    options: dict[str, Any] = {"steps": 4, "sampler": wandering, "output_type": "latent"}
    again = as_tensor(sdxl.pipeline("a", seed=5, **options).images)
    assert first is not None
    assert torch.equal(first, again)
    other = as_tensor(sdxl.pipeline("a", seed=6, **options).images)
    assert not torch.equal(other, again)


def test_options_reach_the_function_and_no_others(sdxl: TinyModel) -> None:
    still = latents_of(sdxl, wandering, sampler_options={"strength": 0.0})
    torch.testing.assert_close(still, latents_of(sdxl, "euler"), rtol=0, atol=1e-4)
    message = r"wandering has no option 'vigour'; its options: extra_args, strength"
    with pytest.raises(kdrt.InvalidRequestError, match=message):
        latents_of(sdxl, wandering, sampler_options={"vigour": 1})
    with pytest.raises(kdrt.InvalidRequestError, match="has no option 'callback'"):
        latents_of(sdxl, wandering, sampler_options={"callback": print})


def test_leaving_ends_the_function(sdxl: TinyModel) -> None:
    before = set(threading.enumerate())
    cleaned: list[bool] = []

    def careful(model: Any, x: Tensor, sigmas: Tensor, callback: Any) -> Tensor:
        try:
            return wandering(model, x, sigmas, callback=callback)
        except Exception:  # what it catches is not ours
            return x
        finally:
            cleaned.append(True)

    generation = sdxl.pipeline.stream("a", steps=8, seed=1, sampler=careful)
    for step in generation:
        if step.index == 2:
            break
    assert len(sdxl.unet.calls) == 4  # a step is known to be over when the next one calls back
    generation.close()
    assert cleaned == [True]
    assert set(threading.enumerate()) <= before
    with pytest.raises(kdrt.InvalidRequestError, match="were not finished"):
        generation.result()


def test_its_errors_are_raised_as_they_are(sdxl: TinyModel) -> None:
    def broken(model: Any, x: Tensor, sigmas: Tensor, callback: Any) -> Tensor:
        callback({"x": x, "i": 0, "sigma": sigmas[0], "denoised": x})
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        latents_of(sdxl, broken)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda model, x, sigmas: None, r"returned NoneType, expected latents \[2, 4, 8, 6\]"),
        (lambda model, x, sigmas: model(x[:1], sigmas[:1]), r"evaluates the model at shape \[1, "),
        (lambda model, x, sigmas: model(x, sigmas[:2]), "gives each image another sigma"),
    ],
)
def test_what_the_model_cannot_do_is_said(sdxl: TinyModel, sampler: Any, message: str) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=message):
        latents_of(sdxl, sampler)


def test_the_model_has_what_extensions_look_for(sdxl: TinyModel) -> None:
    seen: dict[str, float] = {}

    def curious(model: Any, x: Tensor, sigmas: Tensor, **rest: Any) -> Tensor:
        assert rest["extra_args"] == {}
        wrapped = model.inner_model.inner_model
        seen["count"] = len(wrapped.sigmas)
        seen["low"], seen["high"] = float(model.sigma_min), float(wrapped.sigma_max)
        middle = wrapped.t_to_sigma(torch.tensor([500.0]))
        seen["t"] = float(wrapped.sigma_to_t(middle))
        sampling = model.inner_model.model_sampling
        seen["half"] = sampling.percent_to_sigma(0.5)
        assert sampling.percent_to_sigma(0.0) > 1e8
        assert sampling.percent_to_sigma(1.0) == 0
        assert float(sampling.timestep(sampling.sigma_max)) == pytest.approx(999)
        return model(x.double(), sigmas[:1], anything=1).float()

    (step,) = sdxl.pipeline.stream("a", steps=3, seed=0, sampler=curious)
    assert (step.index, step.sigma_next) == (0, 0.0)
    assert seen["count"] == 1000
    assert (seen["low"], seen["high"]) == pytest.approx((0.02917, 14.6146), rel=1e-3)
    assert seen["t"] == pytest.approx(500, abs=1e-2)
    assert seen["low"] < seen["half"] < seen["high"]


def test_extensions_see_the_range_of_a_continuous_model(tmp_path: Path) -> None:
    """As ComfyUI's ModelSamplingContinuousEDM shows it."""
    edm = EdmFacts(sigma_min=0.01, sigma_max=100.0, sigma_data=1.0, sigma_schedule="karras")
    seen: dict[str, float] = {}

    def curious(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        sampling = model.model_sampling
        seen["low"], seen["high"] = float(model.sigma_min), float(model.sigma_max)
        seen["t"] = float(sampling.timestep(torch.tensor([20.0])))
        seen["sigma"] = float(sampling.sigma(torch.tensor([seen["t"]])))
        seen["part"] = sampling.percent_to_sigma(0.25)
        return model(x, sigmas[:1])

    pipe = tiny_model(tmp_path, "sd", edm=edm).pipeline
    pipe("a", steps=2, seed=0, sampler=curious)
    assert (seen["low"], seen["high"]) == pytest.approx((0.01, 100.0))
    assert (seen["t"], seen["sigma"]) == pytest.approx((math.log(20) / 4, 20.0), rel=1e-5)
    assert seen["part"] == pytest.approx(10.0)


@needs_k_diffusion
def test_an_unknown_original(sdxl: TinyModel) -> None:
    with pytest.raises(
        kdrt.InvalidRequestError, match=r"k-diffusion has no 'sample_x'; it has: .*heun"
    ):
        latents_of(sdxl, "k_diffusion.sample_x")


def test_a_missing_package_is_named(sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdrt.sampling.k_diffusion.PathFinder.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, k_diffusion._PACKAGE, raising=False)
    command = "pip install 'kdrt[k-diffusion]' && pip install --no-deps k-diffusion"
    with pytest.raises(kdrt.InvalidRequestError, match=re.escape(command)):
        latents_of(sdxl, "k_diffusion.sample_heun")


def test_the_list_of_native_samplers_is_part_of_ours() -> None:
    assert set(NATIVE) <= set(SAMPLERS)
