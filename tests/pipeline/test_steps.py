"""The loop in the caller's hands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kdrt
from kdrt.bundle import LatentFacts
from kdrt.vae.preview import Previewer
from tests.support.tiny_model import SCALE, TinyModel

FACTORS = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5), (0.1, -0.1, 0.2), (0.2, 0.0, -0.2))


def test_steps_make_the_image_of_a_call(sdxl: TinyModel) -> None:
    arguments: dict[str, Any] = {
        "steps": 5,
        "seed": 3,
        "guidance_scale": 4.0,
        "original_size": (70, 60),
    }
    generation = sdxl.pipeline.stream("a red circle", "blurry", **arguments, output_type="np")
    assert len(generation) == 5
    steps = [(step.index, step.sigma, step.sigma_next) for step in generation]
    assert [index for index, _, _ in steps] == [0, 1, 2, 3, 4]
    assert [s for _, _, s in steps[:-1]] == [s for _, s, _ in steps[1:]]
    result = generation.result()
    assert result is generation.result()
    called = sdxl.pipeline("a red circle", "blurry", **arguments, output_type="np")
    assert np.array_equal(result.images, called.images)
    assert result.infotexts == called.infotexts


def test_the_result_takes_what_steps_are_left(sdxl: TinyModel) -> None:
    called = sdxl.pipeline("a", steps=4, seed=3, output_type="np")
    generation = sdxl.pipeline.stream("a", steps=4, seed=3, output_type="np")
    next(generation)
    assert len(sdxl.unet.calls) == 4 + 1
    assert np.array_equal(generation.result().images, called.images)


def test_what_is_closed_has_no_result(sdxl: TinyModel) -> None:
    generation = sdxl.pipeline.stream("a", steps=4, seed=3)
    next(generation)
    generation.close()
    with pytest.raises(StopIteration):
        next(generation)
    with pytest.raises(kdrt.InvalidRequestError, match="were not finished"):
        generation.result()


def test_a_finished_run_may_be_decoded_later(sdxl: TinyModel) -> None:
    first = sdxl.pipeline.stream("a", steps=2, seed=3, output_type="np")
    *_, _ = first
    sdxl.pipeline("b", steps=2, seed=4)
    expected = sdxl.pipeline("a", steps=2, seed=3, output_type="np")
    assert np.array_equal(first.result().images, expected.images)


def test_leaving_cancels(sdxl: TinyModel) -> None:
    for step in sdxl.pipeline.stream("a", steps=9, seed=3):
        if step.index == 2:
            break
    assert len(sdxl.unet.calls) == 3
    assert sdxl.vae_decoder.calls == []


def test_everything_is_checked_before_the_first_step(sdxl: TinyModel) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match="unknown sampler"):
        sdxl.pipeline.stream("a", sampler="nonsense")
    stream: Any = sdxl.pipeline.stream
    for name in ("stepz", "callback", "sizes"):
        with pytest.raises(TypeError, match=rf"a request has no field '{name}'"):
            stream("a", **{name: 1})
    assert sdxl.unet.calls == []
    with pytest.warns(kdrt.TruncationWarning) as warnings:
        sdxl.pipeline.stream("a red circle " * 9)
    assert {warning.filename for warning in warnings} == {__file__}


def test_the_callers_grad_mode_holds_between_steps(sdxl: TinyModel) -> None:
    for step in sdxl.pipeline.stream("a", steps=2, seed=0):
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad


def facts(preview: Any = FACTORS) -> LatentFacts:
    return LatentFacts(channels=4, scale=SCALE, default_height=8, default_width=8, preview=preview)


def test_a_preview_is_an_affine_map_of_the_latents() -> None:
    denoised = torch.randn(2, 4, 5, 3)
    images = Previewer(facts())(denoised)
    assert [image.size for image in images] == [(3, 5), (3, 5)]
    for latents, image in zip(denoised, images, strict=True):
        for row, column in ((0, 0), (4, 2)):
            values = [
                sum(FACTORS[c][rgb] * float(latents[c, row, column]) for c in range(4))
                + FACTORS[4][rgb]
                for rgb in range(3)
            ]
            expected = [round(255 * min(max(v / 2 + 0.5, 0), 1)) for v in values]
            assert image.getpixel((column, row)) == pytest.approx(expected, abs=1)


def test_every_step_has_a_preview(sdxl: TinyModel) -> None:
    sdxl.pipeline.previewer = Previewer(facts())
    seen: list[tuple[list[Image.Image], list[Image.Image]]] = []

    def look(step: kdrt.PreviewStep) -> None:
        seen.append((step.preview(), Previewer(facts())(step.denoised)))

    sdxl.pipeline(["a", "b"], steps=3, seed=1, callback=look)
    assert len(seen) == 3
    for shown, expected in seen:
        assert [image.size for image in shown] == [(6, 8), (6, 8)]
        assert [p.tobytes() for p in shown] == [p.tobytes() for p in expected]


def test_a_bundle_without_factors_says_so(sdxl: TinyModel) -> None:
    step = next(sdxl.pipeline.stream("a", steps=1, seed=1))
    with pytest.raises(kdrt.InvalidRequestError, match="without previews; export the model again"):
        step.preview()


def test_a_step_can_be_decoded_in_full(sdxl: TinyModel) -> None:
    generation = sdxl.pipeline.stream("a", steps=3, seed=1)
    denoised, shown = [], []
    for step in generation:
        shown += step.decode()
        denoised.append(step.denoised.clone())
    assert [image.size for image in shown] == [(48, 64)] * 3
    for call, expected in zip(sdxl.vae_decoder.calls, denoised, strict=True):
        assert torch.equal(call["latents"], expected)
    assert shown[-1].tobytes() == generation.result().images[0].tobytes()
