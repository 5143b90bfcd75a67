"""Whatever comes and goes beside it, an image is the one that a call makes of its request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import kdrt
from kdrt.batching.handle import Handle, ImageStep
from kdrt.sampling import NOISES, SAMPLERS
from tests.support.gates import ends_with, made
from tests.support.image_arrays import as_tensor
from tests.support.requests import request_of
from tests.support.tiny_model import tiny_model

FIXED = [name for name, info in SAMPLERS.items() if getattr(info, "capturable", True)]
LONG = "a (small:1.3) red circle on a blue background, " * 14
PROMPTS = ("a red circle", "2 yellow stars and a (large:0.8) green square", LONG)
SIZES = ((32, 32), (32, 48))
IMAGE = Image.effect_noise((32, 32), 80).convert("RGB")
MASK = Image.new("L", (32, 32))
MASK.paste(255, (0, 0, 20, 12))


def euler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    """A sampler of a user's, which draws from PyTorch's global generator too."""
    for i in range(len(sigmas) - 1):
        x = x + (x - model(x, sigmas[i])) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        x = x + 0.1 * torch.randn_like(x) * sigmas[i + 1]
    return x


Fields = dict[str, Any]


@st.composite
def requests(draw: st.DrawFn, *, images: bool) -> Fields:
    """Any request of a few steps; some are refused. With ``images`` some begin with one."""

    def maybe(name: str, *values: Any) -> None:
        if draw(st.integers(0, 3)) == 0:
            fields[name] = draw(st.sampled_from(values))

    height, width = draw(st.sampled_from(SIZES))
    fields: Fields = {
        "prompt": draw(st.sampled_from(PROMPTS)),
        "seed": draw(st.integers(0, 9)),
        "steps": draw(st.integers(1, 6)),
        "sampler": draw(st.sampled_from([*FIXED, *FIXED, "dpm_adaptive", euler])),
        "guidance_scale": draw(st.sampled_from([1.0, 3.0, 7.0])),
        "prompt_weighting": "a1111",
        "height": height,
        "width": width,
    }
    maybe("negative_prompt", "blurry", LONG)
    maybe("schedule", "karras", "beta")
    maybe("guidance_rescale", 0.7)
    maybe("guidance_method", "apg", "cfg_zero_star")
    maybe("pag_scale", 2.0)
    maybe("guidance_interval", (0.5, 6.0))
    maybe("clip_skip", 1, 2)
    maybe("images_per_prompt", 2, 3)
    maybe("noise", *NOISES)
    maybe("freeu", (1.3, 1.4, 0.9, 0.2))
    maybe("original_size", (640, 480))
    maybe("denoising_end", 0.6)
    maybe("hires_scale", 1.5)
    if images and draw(st.integers(0, 3)) == 0:
        fields["image"], fields["strength"] = IMAGE, draw(st.sampled_from([0.4, 1.0]))
        maybe("mask_image", MASK)
        if "mask_image" in fields:
            maybe("inpaint_fill", "noise")
            maybe("mask_grow", 3)
            if draw(st.booleans()):
                fields |= {"mask_blur": 4, "soft_mask": True}
    return fields


@dataclass
class Asked:
    """A request, and what became of it."""

    fields: Fields
    handle: Handle[Tensor] | None = None
    refusal: str | None = None
    steps: list[tuple[int, int, float]] = field(default_factory=list)
    is_cancelled: bool = False

    def submit(self, batcher: kdrt.Batcher) -> None:
        def watch(step: ImageStep) -> None:
            assert step.latents.shape[0] == step.denoised.shape[0] == 1
            self.steps.append((step.image, step.index, step.sigma))

        request = request_of(self.fields)
        try:
            self.handle = batcher.submit(request, output_type="latent", callback=watch)
        except kdrt.InvalidRequestError as error:
            self.refusal = str(error)

    def cancel(self) -> None:
        if self.handle is not None:
            self.is_cancelled |= self.handle.cancel()


@dataclass(frozen=True)
class Mix:
    """Requests that come, and some of them go, at known steps of a request that goes on."""

    rows: int
    images: int
    begins: Fields
    at_step: tuple[tuple[tuple[Fields, ...], tuple[int, ...]], ...]


@st.composite
def mixes(draw: st.DrawFn, *, images: bool) -> Mix:
    few = st.lists(requests(images=images), max_size=3).map(tuple)
    gone = st.lists(st.integers(0, 9), max_size=1).map(tuple)
    return Mix(
        draw(st.integers(3, 8)),  # one with perturbed attention takes three
        draw(st.integers(1, 6)),
        {"prompt": "a", "seed": 1, "steps": 8, "height": 32, "width": 32},
        draw(st.lists(st.tuples(few, gone), min_size=1, max_size=4).map(tuple)),
    )


def play(pipe: kdrt.Pipeline, mix: Mix) -> list[Asked]:
    """Every request of a mix, at its end."""
    asked: list[Asked] = []

    def turn(batcher: kdrt.Batcher, step: int) -> None:
        come, go = mix.at_step[step] if step < len(mix.at_step) else ((), ())
        for fields in come:
            asked.append(Asked(fields))
            asked[-1].submit(batcher)
        for number in go:
            if number < len(asked):
                asked[number].cancel()

    with kdrt.Batcher(pipe, max_rows=mix.rows, max_images=mix.images) as batcher:
        first = Asked(mix.begins)
        first.handle = batcher.submit(
            request_of(mix.begins),
            output_type="latent",
            callback=lambda step: turn(batcher, step.index),
        )
        made(first.handle)
        for each in asked:
            if each.handle is not None:
                each.handle.exception(timeout=120)
        assert (batcher.waiting, batcher.in_flight) == (0, 0)
    return [first, *asked]


def assert_as_alone(pipe: kdrt.Pipeline, asked: Asked, *, exactly: bool) -> None:
    call: Callable[..., Any] = pipe.__call__
    if asked.handle is None:
        with pytest.raises(kdrt.InvalidRequestError) as refused:
            call(**asked.fields, output_type="latent")
        assert str(refused.value) == asked.refusal
        return
    if asked.is_cancelled and asked.handle.exception() is not None:
        ends_with(asked.handle, kdrt.CancelledError)
        return
    steps: list[tuple[int, float]] = []
    alone = call(
        **asked.fields,
        output_type="latent",
        callback=lambda step: steps.append((step.index, step.sigma)),
    )
    result = made(asked.handle)
    actual, expected = as_tensor(result.images), as_tensor(alone.images)
    if exactly:
        assert torch.equal(actual, expected)
    else:
        bound = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
    assert result.seeds == alone.seeds
    assert result.infotexts == alone.infotexts
    shares = asked.fields.get("sampler") not in ("dpm_adaptive", euler)
    assert result.in_flight == shares
    assert not alone.in_flight
    for image in range(len(result.seeds) if asked.steps else 0):
        assert [(i, sigma) for place, i, sigma in asked.steps if place == image] == steps


@pytest.fixture(scope="module")
def ours(demo_bundle: Path) -> kdrt.Pipeline:
    return kdrt.load(demo_bundle, engine="onnxruntime")


@pytest.fixture(scope="module")
def element_by_element(tmp_path_factory: pytest.TempPathFactory) -> kdrt.Pipeline:
    """Whose network computes each image of a batch as if it were alone, bit by bit."""
    return tiny_model(tmp_path_factory.mktemp("tiny"), "sdxl", perturbed=True).pipeline


@given(mixes(images=True))
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_images_on_onnx_runtime(ours: kdrt.Pipeline, mix: Mix) -> None:
    for asked in play(ours, mix):
        assert_as_alone(ours, asked, exactly=False)


@given(mixes(images=False))
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_images_bit_by_bit(element_by_element: kdrt.Pipeline, mix: Mix) -> None:
    for asked in play(element_by_element, mix):
        assert_as_alone(element_by_element, asked, exactly=True)
