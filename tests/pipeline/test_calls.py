"""Calls of one pipeline from several threads, and from within one another."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kdrt
from kdrt import Pipeline
from kdrt.adapters.lora_file import lora_from_tensors
from kdrt.compat import StableDiffusionXLKDiffusionPipeline
from tests.support.tiny_model import WIDTHS, TinyModel

PROMPTS = ("a red circle", "2 yellow stars", "a green square on a blue background")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
REFUSED = "in the middle of another generation"
Job = Callable[[Pipeline], np.ndarray | Tensor]


def euler(model: Any, x: Tensor, sigmas: Tensor, callback: Any = None) -> Tensor:
    """A sampler of a user's, which draws from PyTorch's global generator too."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
        x = x + (torch.rand(1) + 0.1 * torch.randn_like(x)) * sigmas[i + 1]
    return x


def _job(number: int) -> Job:
    """One of many calls, each of its own."""
    draw = random.Random(number)
    prompt, seed = draw.choice(PROMPTS), draw.randrange(1000)
    common: dict[str, Any] = {"seed": seed, "steps": draw.choice((1, 2)), "output_type": "np"}
    common["sampler"] = draw.choice(("euler", "euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive"))
    common["height"] = draw.choice((64, 80))

    def in_steps(pipe: Pipeline) -> np.ndarray:
        generation = pipe.stream(prompt, "blurry", **common)
        for step in generation:
            step.decode()
        return generation.result().images

    def left_early(pipe: Pipeline) -> np.ndarray:
        for _ in pipe.stream("a small star", **common):
            break
        return pipe(prompt, **common).images

    def filtered(pipe: Pipeline) -> np.ndarray:
        return pipe(prompt, image_filter=lambda image: image.rotate(180), **common).images

    def embedded(pipe: Pipeline) -> Tensor:
        conditioning, _ = pipe.encode_prompt(f"{prompt}, {seed}", prompt_weighting="a1111")
        return conditioning.encoder_hidden_states

    def decoded(pipe: Pipeline) -> Tensor:
        latents = torch.full((1, 4, common["height"] // 8, 6), seed / 1000)
        return pipe.vae.decoder(latents)

    def wrong(pipe: Pipeline) -> np.ndarray:
        with pytest.raises(kdrt.InvalidRequestError, match="multiple of 8"):
            pipe(prompt, **{**common, "height": 65})
        return pipe(prompt, **common).images

    def taught(pipe: Pipeline) -> np.ndarray:
        token = f"<{number}>"
        pipe.adapters.load_textual_inversion(torch.ones(1, WIDTHS[0]) * number, token)
        pipe.vae.enable_slicing()
        pipe.adapters.unload_textual_inversion(token)
        return pipe(prompt, **common).images

    kinds: tuple[Job, ...] = (
        in_steps,
        left_early,
        filtered,
        embedded,
        wrong,
        decoded,
        taught,
        lambda pipe: pipe(prompt, "blurry", **common).images,
        lambda pipe: pipe([prompt, "a"], images_per_prompt=2, **common).images,
        lambda pipe: pipe(prompt, **{**common, "sampler": euler}).images,
        lambda pipe: pipe(prompt, guidance_scale=1, callback=lambda s: s.decode(), **common).images,
    )
    return draw.choice(kinds)


def _in_threads(pipe: Pipeline, jobs: list[Job], threads: int) -> list[np.ndarray | Tensor]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: job(pipe), jobs))


def _equal(one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("family", "count"), [("sdxl", 120), pytest.param("sd", 1600, marks=pytest.mark.slow)]
)
def test_eight_threads_get_what_one_gets(
    request: pytest.FixtureRequest, family: str, count: int
) -> None:
    pipe = request.getfixturevalue(family).pipeline
    jobs = [_job(number) for number in range(count)]
    expected = [job(pipe) for job in jobs]
    pairs = zip(expected, _in_threads(pipe, jobs, 8), strict=True)
    assert [number for number, pair in enumerate(pairs) if not _equal(*pair)] == []
    pairs = zip(expected[:40], [job(pipe) for job in jobs[:40]], strict=True)
    assert [number for number, pair in enumerate(pairs) if not _equal(*pair)] == [], "afterwards"


def test_real_engines_are_shared_by_threads_and_by_pipelines(demo_bundle: Path) -> None:
    """Two pipelines of one bundle, four threads each."""
    prompts = ("a red circle", "a green star on white", "a small yellow heart")
    options: dict[str, Any] = {"height": 64, "width": 64, "output_type": "np"}

    def image(pipe: Pipeline, number: int) -> np.ndarray:
        arguments = {**options, "seed": number, "steps": number % 2 + 1}
        if number % 5 == 0:
            arguments |= {"image": IMAGE, "strength": 1}
        if number % 7 == 0:
            arguments["sampler"] = euler
        return pipe(prompts[number % 3], guidance_scale=number % 4, **arguments).images

    one, other = (kdrt.load(demo_bundle, engine="onnxruntime", threads=n) for n in (1, 2))
    jobs: list[Job] = [partial(lambda number, pipe: image(pipe, number), n) for n in range(24)]
    expected = [job(one) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda pipe: _in_threads(pipe, jobs, 4), (one, other))
    for actual in results:
        pairs = zip(expected, actual, strict=True)
        assert [number for number, pair in enumerate(pairs) if not _equal(*pair)] == []


@contextmanager
def _another_thread(work: Callable[[], object]) -> Iterator[threading.Event]:
    """``work`` in a thread, and whether it is done; within, it has begun and not ended."""
    done = threading.Event()

    def finish() -> None:
        work()
        done.set()

    thread = threading.Thread(target=finish)
    thread.start()
    yield done
    thread.join(60)
    assert done.is_set()


def test_a_generation_has_the_pipeline_to_itself(sdxl: TinyModel) -> None:
    """Whatever ends it lets the next one in."""

    def exhausted(generation: kdrt.Generation[Any]) -> None:
        for _ in generation:
            pass

    def failing(generation: kdrt.Generation[Any]) -> None:
        not_callable: Any = None
        sdxl.vae_decoder.network = sdxl.unet.network = not_callable
        with pytest.raises(TypeError):
            next(generation)

    for end in (exhausted, kdrt.Generation.result, kdrt.Generation.close, failing):
        generation = sdxl.pipeline.stream("a", steps=4, seed=3)
        next(generation)
        calls = len(sdxl.unet.calls)
        network = sdxl.unet.network, sdxl.vae_decoder.network
        with _another_thread(lambda: sdxl.pipeline.encode_prompt("b")) as done:
            assert not done.wait(0.02)
            assert len(sdxl.unet.calls) == calls
            end(generation)
            assert done.wait(60)
        sdxl.unet.network, sdxl.vae_decoder.network = network


def test_a_generation_that_is_let_go_ends(sdxl: TinyModel) -> None:
    generation = sdxl.pipeline.stream("a", steps=4, seed=3)
    next(generation)
    step = next(generation)
    del generation
    assert sdxl.pipeline("a", steps=1, seed=3).seeds == [3]
    assert len(step.decode()) == 1, "a step may outlive its generation"

    cycle: list[Any] = [sdxl.pipeline.stream("a", steps=4, seed=3)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert sdxl.pipeline("a", steps=1, seed=3).seeds == [3]


def test_steps_that_nobody_takes_hold_nothing(sdxl: TinyModel) -> None:
    waiting = sdxl.pipeline.stream("a red circle", steps=2, seed=3, output_type="np")
    expected = sdxl.pipeline("a red circle", steps=2, seed=3, output_type="np").images
    with _another_thread(lambda: sdxl.pipeline("b", steps=1)) as done:
        assert done.wait(60)
    assert np.array_equal(waiting.result().images, expected)


def test_what_changed_before_the_first_step_counts(sdxl: TinyModel) -> None:
    arguments: dict[str, Any] = {"steps": 2, "seed": 3, "output_type": "np"}
    before = sdxl.pipeline("a red circle", **arguments).images
    asked = sdxl.pipeline.stream("a red circle", **arguments)
    sdxl.pipeline.adapters.load_textual_inversion(torch.ones(1, WIDTHS[0]), "red")
    after = sdxl.pipeline("a red circle", **arguments).images
    assert np.array_equal(asked.result().images, after)
    assert not np.array_equal(before, after)


def test_a_generation_may_change_its_thread(sdxl: TinyModel) -> None:
    arguments: dict[str, Any] = {"steps": 4, "seed": 3, "output_type": "np"}
    expected = sdxl.pipeline("a", **arguments).images
    generation = sdxl.pipeline.stream("a", **arguments)
    next(generation)
    with _another_thread(lambda: next(generation)) as done:
        assert done.wait(60)
    # It is the other thread's now, and so this one waits for it.
    with _another_thread(lambda: sdxl.pipeline("b", steps=1)) as waiting:
        assert not waiting.wait(0.02)
        assert np.array_equal(generation.result().images, expected)


def test_two_threads_do_not_take_one_step(sdxl: TinyModel) -> None:
    generation: kdrt.Generation[Any]
    errors: list[str] = []

    def meddle(*_: object) -> None:
        with pytest.raises(kdrt.InvalidRequestError) as error:
            next(generation)
        errors.append(str(error.value))

    def sampler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        meddle()
        return model(x, sigmas[0])

    generation = sdxl.pipeline.stream("a", steps=2, seed=3, sampler=sampler)
    generation.result()
    assert errors == [
        "a step of this generation is being taken already; let one thread after the other take them"
    ]


LORA = lora_from_tensors(
    {"unet.to_q.lora_A.weight": torch.ones(1, 2), "unet.to_q.lora_B.weight": torch.ones(2, 1)}
)
CALLS: dict[str, Callable[[Pipeline], object]] = {
    "call": lambda pipe: pipe("b", steps=1),
    "steps": lambda pipe: pipe.stream("b", steps=1),
    "encode": lambda pipe: pipe.encode_prompt("b"),
    "set_loras": lambda pipe: pipe.adapters.set_loras({}),
    "unload_loras": lambda pipe: pipe.adapters.unload_loras(),
    "load_lora": lambda pipe: pipe.adapters.load_lora(LORA),
    "variant": lambda pipe: pipe.adapters.use_variant(None),
    "learn": lambda pipe: pipe.adapters.load_textual_inversion(torch.ones(1, WIDTHS[0]), "word"),
    "forget": lambda pipe: pipe.adapters.unload_textual_inversion(),
    "slicing": lambda pipe: pipe.vae.disable_slicing(),
    "tiling": lambda pipe: pipe.vae.enable_tiling(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_thread_cannot_begin_a_call_in_the_middle_of_another(sdxl: TinyModel, name: str) -> None:
    """Neither between steps, nor in any function of its own that a call runs."""
    pipe, refused = sdxl.pipeline, 0
    arguments: dict[str, Any] = {"steps": 2, "seed": 3, "output_type": "np"}
    expected = pipe("a", **arguments).images
    foreign = pipe("a", sampler=euler, **arguments).images

    def meddle(*_: object) -> None:
        nonlocal refused
        with pytest.raises(kdrt.InvalidRequestError, match=REFUSED):
            CALLS[name](pipe)
        refused += 1

    def meddling(model: Any, x: Tensor, sigmas: Tensor, callback: Any = None) -> Tensor:
        meddle()
        return euler(model, x, sigmas, callback)

    generation = pipe.stream("a", **arguments)
    for _ in generation:
        meddle()
    assert np.array_equal(generation.result().images, expected)
    assert np.array_equal(pipe("a", callback=meddle, **arguments).images, expected)
    assert np.array_equal(pipe("a", image_filter=meddle, **arguments).images, expected)
    assert np.array_equal(pipe("a", sampler=meddling, **arguments).images, foreign)
    assert refused == 2 + 2 + 1 + 1


def test_a_callback_runs_in_the_callers_modes(sdxl: TinyModel) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append((torch.get_default_dtype(), torch.is_inference_mode_enabled()))
        assert torch.ones(1).dtype is torch.bfloat16

    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            sdxl.pipeline("a", steps=2, callback=look, image_filter=look)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [(torch.bfloat16, True)] * 3


def test_latents_can_be_decoded_in_the_middle_of_a_call(sdxl: TinyModel) -> None:
    """As callbacks written for diffusers do."""
    pipe, latents = sdxl.pipeline, torch.ones(1, 4, 8, 6)
    expected = pipe.vae.decoder(latents)
    alone = pipe("a", steps=2, seed=1, output_type="np").images
    found: list[Tensor] = []
    options: dict[str, Any] = {"callback": lambda _: found.append(pipe.vae.decoder(latents))}
    result = pipe("a", steps=2, seed=1, output_type="np", **options).images
    assert np.array_equal(result, alone)
    assert torch.equal(found[0], expected)
    for _ in pipe.stream("a", steps=2):
        assert torch.equal(pipe.vae.decoder(latents), expected)


def _in_a_fork(work: Callable[[], object]) -> str:
    """What ``work`` raises in a forked process."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            work()
            os.write(writer, b"nothing")
        except kdrt.EngineError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return answer.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that is the point
def test_a_forked_process_is_told_to_spawn(sdxl: TinyModel) -> None:
    """Whatever it asks of the pipeline, also what was begun before."""
    pipe = sdxl.pipeline
    made = pipe.stream("a", steps=2, seed=3, output_type="np")
    works: list[Callable[[], object]] = [partial(call, pipe) for call in CALLS.values()]
    works.append(lambda: StableDiffusionXLKDiffusionPipeline(pipe).encode_prompt("a"))
    works.append(lambda: pipe.vae.decoder(torch.ones(1, 4, 8, 6)))
    works.append(lambda: next(made))
    for work in works:
        assert "load it in each worker, or start workers by spawn" in _in_a_fork(work)
    step = next(made)
    works = [lambda: next(made), made.result, step.decode, lambda: pipe("a", steps=1)]
    for work in works:
        assert "load it in each worker, or start workers by spawn" in _in_a_fork(work)
    made.close()
    assert pipe("a", steps=1, seed=3).seeds == [3], "and here all is as before"


def test_the_compat_classes_take_turns_too(sdxl: TinyModel) -> None:
    compat: Any = StableDiffusionXLKDiffusionPipeline(sdxl.pipeline)
    options: dict[str, Any] = {
        "num_inference_steps": 2,
        "output_type": "np",
        "height": 64,
        "width": 64,
    }

    def called(number: int) -> Job:
        def job(_: Pipeline) -> np.ndarray:
            generator = torch.Generator().manual_seed(number)
            prompt, scale = PROMPTS[number % 3], float(number % 4)
            made = compat(prompt, generator=generator, guidance_scale=scale, **options)
            return np.asarray(made.images)

        return job

    def embedded(number: int) -> Job:
        return lambda _: compat.encode_prompt(PROMPTS[number % 3], clip_skip=number % 2)[0]

    jobs = [(called, embedded, _job)[n % 3](n) for n in range(48)]
    expected = [job(sdxl.pipeline) for job in jobs]
    pairs = zip(expected, _in_threads(sdxl.pipeline, jobs, 8), strict=True)
    assert [number for number, pair in enumerate(pairs) if not _equal(*pair)] == []


def test_a_callback_of_the_compat_classes_cannot_begin_a_call(sdxl: TinyModel) -> None:
    compat = StableDiffusionXLKDiffusionPipeline(sdxl.pipeline)
    refused = []

    def meddle(*_: object) -> None:
        for call in (lambda: compat("b"), lambda: compat.encode_prompt("b"), compat.disable_lora):
            with pytest.raises(kdrt.InvalidRequestError, match=REFUSED):
                call()
            refused.append(call)

    compat("a", num_inference_steps=2, callback=meddle, height=64, width=64)
    assert len(refused) == 2 * 3
