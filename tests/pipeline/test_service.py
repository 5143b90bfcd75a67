"""Warm-up, cancelling and closing a pipeline."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kdrt
from kdrt.compat import StableDiffusionXLKDiffusionPipeline
from tests.support.tiny_model import TinyModel, tiny_model

OPTIONS: dict[str, Any] = {"steps": 4, "seed": 3, "output_type": "np"}


def test_a_warm_shape_binds_nothing_for_its_first_image(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    pipe.warmup([(64, 48), (64, 64, 2)], steps=1)
    assert len(sdxl.unet.calls) == 2
    bound: list[dict[str, int]] = []
    engine = pipe.engines["unet"]
    bind = engine.bind

    def recording(**dims: int) -> Any:
        bound.append(dims)
        return bind(**dims)

    engine.bind = recording  # type: ignore[method-assign]
    pipe("a", height=64, width=48, steps=2)
    pipe("a", height=64, width=64, images_per_prompt=2, steps=2)
    assert bound == []
    pipe("a", height=80, width=48, steps=1)
    assert len(bound) == 1


def test_a_warm_up_changes_no_image(sdxl: TinyModel) -> None:
    expected = sdxl.pipeline("a", height=64, width=48, **OPTIONS).images
    sdxl.pipeline.warmup([(64, 48)], steps=2, sampler="euler_ancestral")
    assert np.array_equal(sdxl.pipeline("a", height=64, width=48, **OPTIONS).images, expected)


def test_without_shapes_the_default_size_is_warmed(sdxl: TinyModel) -> None:
    sdxl.pipeline.warmup(steps=1)
    facts = sdxl.manifest.latents
    (call,) = sdxl.unet.calls
    assert call["sample"].shape[-2:] == (
        facts.default_height // facts.scale,
        facts.default_width // facts.scale,
    )


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        ([(64,)], {}, "a shape is"),
        ([(64, [64])], {}, "a shape is"),
        (["64"], {}, "a shape is"),
        ((64, 64), {}, r"shapes must be a list of .*, not \(64, 64\)"),
        ([64, 64], {}, "shapes must be a list of"),
        (64, {}, "shapes must be a list of"),
        ([(64, 65)], {}, "multiple of 8"),
        ([(64, 64)], {"height": 64}, "give height already"),
        ([(64, 8 * n) for n in range(1, 6)], {}, "buffers of 4 sizes"),
    ],
)
def test_wrong_shapes_are_refused(
    sdxl: TinyModel, shapes: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=message):
        sdxl.pipeline.warmup(shapes, steps=1, **fields)


def euler(model: Any, x: Tensor, sigmas: Tensor, callback: Any) -> Tensor:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
    return x


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpm_adaptive", euler])
def test_cancel_ends_the_running_call_at_its_next_step(sdxl: TinyModel, sampler: Any) -> None:
    pipe = sdxl.pipeline
    expected = pipe("a", sampler=sampler, **OPTIONS).images
    stepped, go_on = threading.Event(), threading.Event()
    steps, errors = [], []

    def callback(step: kdrt.PreviewStep) -> None:
        steps.append(step.index)
        stepped.set()
        assert go_on.wait(60)

    def make() -> None:
        try:
            pipe("a", sampler=sampler, callback=callback, **OPTIONS)
        except kdrt.CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    assert stepped.wait(60)
    assert pipe.cancel()
    go_on.set()
    thread.join(60)
    assert len(errors) == 1
    assert steps == [0]
    assert not pipe.cancel(), "nothing runs any more"
    assert np.array_equal(pipe("a", sampler=sampler, **OPTIONS).images, expected)


def test_cancel_spares_the_calls_that_wait(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    generation = pipe.stream("a", **OPTIONS)
    next(generation)
    made: list[Any] = []
    waiting = threading.Thread(target=lambda: made.append(pipe("b", **OPTIONS)))
    waiting.start()
    assert pipe.cancel()
    with pytest.raises(kdrt.CancelledError):
        next(generation)
    waiting.join(60)
    assert len(made) == 1
    with pytest.raises(kdrt.InvalidRequestError, match="not finished"):
        generation.result()


def test_a_callback_that_returns_false_ends_the_call(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    expected = pipe("a", **OPTIONS).images
    seen: list[int] = []

    def callback(step: kdrt.PreviewStep) -> bool:
        seen.append(step.index)
        return step.index < 1

    with pytest.raises(kdrt.CancelledError, match="returned False") as caught:
        pipe("a", callback=callback, **OPTIONS)
    assert seen == [0, 1]
    # While the exception is kept, so is the frame that made the images.
    assert caught.value is not None
    assert np.array_equal(pipe("a", **OPTIONS).images, expected)
    assert np.array_equal(pipe("a", callback=lambda _: None, **OPTIONS).images, expected)


def test_a_compat_call_can_be_cancelled(sdxl: TinyModel) -> None:
    compat = StableDiffusionXLKDiffusionPipeline(sdxl.pipeline)
    options: dict[str, Any] = {"num_inference_steps": 4, "output_type": "np"}
    steps: list[int] = []

    def callback(index: int, timestep: float, latents: Tensor) -> None:
        steps.append(index)
        compat.pipeline.cancel()

    with pytest.raises(kdrt.CancelledError):
        compat("a", callback=callback, height=64, width=64, **options)
    assert steps == [0]
    untyped: Any = compat
    assert len(untyped("a", height=64, width=64, **options).images) == 1


USES: dict[str, Callable[[kdrt.Pipeline], object]] = {
    "call": lambda pipe: pipe("a"),
    "steps": lambda pipe: pipe.stream("a"),
    "encode": lambda pipe: pipe.encode_prompt("a"),
    "warmup": lambda pipe: pipe.warmup(),
    "adapters": lambda pipe: pipe.adapters.set_loras({}),
    "vae": lambda pipe: pipe.vae.enable_tiling(),
    "engines": lambda pipe: pipe.engines["unet"],
    "enter": lambda pipe: pipe.__enter__(),
}


def test_a_closed_pipeline_says_so(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    compat = StableDiffusionXLKDiffusionPipeline(pipe)
    vae, adapters = pipe.vae, pipe.adapters
    pipe.close()
    pipe.close()
    for use in USES.values():
        with pytest.raises(kdrt.PipelineClosedError, match="load the bundle again"):
            use(pipe)
    for late in (
        lambda: vae.decoder(torch.zeros(1, 4, 8, 8)),
        lambda: adapters.set_loras({}),
        lambda: compat("a"),
    ):
        with pytest.raises(kdrt.PipelineClosedError):
            late()
    assert not pipe.cancel()


def test_closing_frees_the_engines(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "sdxl")
    pipe = model.pipeline
    pipe("a", steps=1)
    engines = [weakref.ref(engine) for engine in pipe.engines.values()]
    del model
    pipe.close()
    assert [ref() for ref in engines] == [None] * len(engines)


def test_with_closes_at_the_end_also_after_an_error(sdxl: TinyModel) -> None:
    def fail_between_steps() -> None:
        with sdxl.pipeline as pipe:
            for _ in pipe.stream("a", **OPTIONS):
                raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        fail_between_steps()
    with pytest.raises(kdrt.PipelineClosedError):
        sdxl.pipeline("a")


def test_a_generation_left_in_the_middle_is_ended_by_closing(sdxl: TinyModel) -> None:
    with sdxl.pipeline as pipe:
        generation = pipe.stream("a", **OPTIONS)
        next(generation)
    with pytest.raises(kdrt.CancelledError):
        next(generation)
    with pytest.raises(kdrt.PipelineClosedError):
        pipe.vae.enable_tiling()
    del generation
    gc.collect()
    with pytest.raises(kdrt.PipelineClosedError):
        pipe("a")


def test_closing_waits_for_the_running_call_and_refuses_later_ones(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    closed = threading.Event()

    def close() -> None:
        pipe.close()
        closed.set()

    closing = threading.Thread(target=close)

    def begin_closing(step: kdrt.PreviewStep) -> None:
        if step.index == 0:
            closing.start()
            assert not closed.wait(0.02)

    assert len(pipe("a", **OPTIONS, callback=begin_closing).images) == 1
    assert closed.wait(60)
    closing.join(60)
    with pytest.raises(kdrt.PipelineClosedError):
        pipe("b")


def test_an_unknown_attribute_is_none_of_a_pipeline(sdxl: TinyModel) -> None:
    assert not hasattr(sdxl.pipeline, "enable_vae_tiling")
