"""The object that users hold: what it promises beyond the images themselves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import kdrt
from kdrt import Batcher
from kdrt.batching.handle import Handle, ImageStep
from kdrt.batching.order import Order
from kdrt.batching.scheduler import GROUP_TICKS
from kdrt.images.safety import SafetyChecker
from kdrt.prompt import TruncationWarning
from kdrt.vae.preview import PreviewStep
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.gates import PATIENCE, Gate, at_each_step, ends_with, held, made
from tests.support.image_arrays import as_tensor
from tests.support.lora_files import ATTENTION, TEXT, kohya, networks, random_lora
from tests.support.requests import request_of
from tests.support.tiny_bundles import TinyModel as TinyBundle
from tests.support.tiny_model import TinyModel, tiny_model, tiny_unet

FIELDS: dict[str, Any] = {"prompt": "a red circle", "seed": 7, "steps": 3}
POISON = (616, 616)
"""An ``original_size`` whose images the networks below treat badly."""


def request(**fields: Any) -> kdrt.Request:
    return request_of({**FIELDS, **fields})


def latents(handle: Handle[Any]) -> Tensor:
    return as_tensor(made(handle).images)


def alone(pipe: Any, **fields: Any) -> Tensor:
    return as_tensor(pipe(**{**FIELDS, **fields}, output_type="latent").images)


def euler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    """A sampler of a user's."""
    for i in range(len(sigmas) - 1):
        x = x + (x - model(x, sigmas[i])) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def same(images: Any, others: Any) -> bool:
    """Whether they are equal, in whatever form."""
    return np.array_equal(np.asarray(images), np.asarray(others))


def is_poisoned(told: dict[str, Tensor]) -> Tensor:
    """Which rows are of such an image."""
    return told["time_ids"][:, 0] == POISON[0]


@pytest.fixture
def pipe(sdxl: TinyModel) -> kdrt.Pipeline:
    return sdxl.pipeline


@pytest.fixture
def batcher(pipe: kdrt.Pipeline) -> Iterator[Batcher]:
    with Batcher(pipe) as batcher:
        yield batcher


# What comes back.


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_a_result_is_that_of_a_call(pipe: Any, batcher: Batcher, output_type: Any) -> None:
    fields: dict[str, Any] = {"prompt": ["a red circle", "2 stars"], "images_per_prompt": 2}
    handle: Handle[Any] = batcher.submit(request(**fields), output_type=output_type)
    result = made(handle)
    expected = pipe(**{**FIELDS, **fields}, output_type=output_type)
    assert handle.steps == 3
    assert same(result.images, expected.images)
    assert result.seeds == expected.seeds == [7, 8, 9, 10]
    assert result.infotexts == expected.infotexts
    assert result.is_latent == (output_type == "latent")
    assert (result.nsfw, result.chunks) == (None, 1)
    assert (result.in_flight, expected.in_flight) == (True, False)


def test_requests_share_runs_of_the_network(sdxl: TinyModel, batcher: Batcher) -> None:
    with held(batcher):
        handles = [
            batcher.submit(request(seed=1, steps=2)),
            batcher.submit(request(seed=2, steps=3, sampler="euler", guidance_scale=1)),
            batcher.submit(request(seed=3, steps=1, sampler="euler_ancestral")),
        ]
    for handle in handles:
        made(handle)
    # The first has its second step with the others; then 3 rows for two of them, then one.
    assert [len(call["sample"]) for call in sdxl.unet.calls] == [2, 7, 3, 1]


def test_a_run_has_no_more_rows_than_asked_for(sdxl: TinyModel) -> None:
    with Batcher(sdxl.pipeline, max_rows=4, max_images=8) as batcher:
        with held(batcher):
            handles = [batcher.submit(request(seed=seed)) for seed in range(5)]
        for handle in handles:
            made(handle)
    assert {len(call["sample"]) for call in sdxl.unet.calls} == {2, 4}


def test_requests_of_many_threads(pipe: kdrt.Pipeline) -> None:
    count = 40

    def ask(batcher: Batcher, seed: int) -> Tensor:
        handle = batcher.submit(request(seed=seed, steps=1 + seed % 4), output_type="latent")
        return latents(handle)

    with Batcher(pipe) as batcher, ThreadPoolExecutor(8) as pool:
        images = list(pool.map(partial(ask, batcher), range(count)))
    for seed, image in enumerate(images):
        assert torch.equal(image, alone(pipe, seed=seed, steps=1 + seed % 4))


def test_map_gives_results_in_order_and_asks_ahead_for_few(pipe: kdrt.Pipeline) -> None:
    asked: list[int] = []

    def requests() -> Iterator[kdrt.Request]:
        for seed in range(30):
            asked.append(seed)
            yield request(seed=seed, steps=1 + seed % 3)

    with Batcher(pipe, max_images=3) as batcher:
        results = batcher.map(requests(), output_type="latent")
        seeds = []
        for result in results:
            seeds += result.seeds
            assert len(asked) - len(seeds) <= 2 * 3 + 1
    assert seeds == list(range(30))


def test_map_that_is_left_early_cancels_what_was_asked_ahead(pipe: kdrt.Pipeline) -> None:
    with Batcher(pipe, max_images=2) as batcher:
        results = batcher.map(request(seed=seed, steps=4) for seed in range(10))
        next(results)
        results.close()  # type: ignore[attr-defined]
        made(batcher.submit(request()))
        assert (batcher.waiting, batcher.in_flight) == (0, 0)


def test_a_warning_is_for_whoever_asks_for_the_result(batcher: Batcher) -> None:
    handle = batcher.submit(request(prompt="a small red circle " * 10, steps=1))
    assert handle.exception(PATIENCE) is None
    with pytest.warns(TruncationWarning, match="tokens"):
        made(handle)


def test_what_cannot_share_says_so_and_takes_turns(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    order: list[str] = []

    def tell(name: str) -> Callable[[ImageStep], None]:
        return lambda step: order.append(name)

    with held(batcher):
        other = {"sampler": "dpm_adaptive", "seed": [1, 2], "prompt": ["a", "2 stars"]}
        adaptive = batcher.submit(request(**other), output_type="latent", callback=tell("adaptive"))
        shared = batcher.submit(request(steps=8), output_type="latent", callback=tell("shared"))
    result = made(adaptive)
    assert not result.in_flight
    assert torch.equal(as_tensor(result.images), alone(pipe, **other))
    assert made(shared).in_flight
    assert order[:4].count("shared") >= 1
    assert order[:4].count("adaptive") >= 1


# Steps.


Seen = tuple[int, float, float, Tensor, Tensor, list[Image.Image]]


def seen(step: PreviewStep) -> Seen:
    look = step.decode()
    latents, denoised = step.latents.clone(), step.denoised.clone()
    return step.index, step.sigma, step.sigma_next, latents, denoised, look


def test_a_callback_sees_every_step_of_every_image_once(
    pipe: kdrt.Pipeline, batcher: Batcher
) -> None:
    by_image: dict[int, list[Seen]] = {0: [], 1: []}
    fields: dict[str, Any] = {"prompt": ["a", "2 stars"], "sampler": "heun", "steps": 4}
    with held(batcher):
        handle = batcher.submit(
            request(**fields), callback=lambda step: by_image[step.image].append(seen(step))
        )
        batcher.submit(request(steps=2, sampler="euler"))
    made(handle)
    together: list[Seen] = []
    pipe(**{**FIELDS, **fields}, callback=lambda step: together.append(seen(step)))
    assert [step[0] for step in together] == [0, 1, 2, 3]
    for image, steps in by_image.items():
        for step, both in zip(steps, together, strict=True):
            assert step[:3] == both[:3]
            assert torch.equal(step[3], both[3][image : image + 1])
            assert torch.equal(step[4], both[4][image : image + 1])
            assert same(step[5], both[5][image : image + 1])


def test_a_callback_previews_its_image(demo_bundle: Path) -> None:
    pipe = kdrt.load(demo_bundle, engine="onnxruntime")
    fields: dict[str, Any] = {"prompt": ["a", "2 stars"], "height": 32, "width": 32}
    previews: dict[int, list[Image.Image]] = {0: [], 1: []}
    with Batcher(pipe) as batcher:
        handle = batcher.submit(
            request(**fields), callback=lambda step: previews[step.image].extend(step.preview())
        )
        made(handle)
    expected: list[list[Image.Image]] = []
    pipe(**{**FIELDS, **fields}, callback=lambda step: expected.append(step.preview()))
    for image, own in previews.items():
        assert len(own) == 3
        for preview, both in zip(own, expected, strict=True):
            away = np.asarray(preview, int) - np.asarray(both[image], int)
            assert np.abs(away).max() <= 1


@pytest.mark.parametrize("sampler", ["euler", "dpm_adaptive"])
def test_steps_that_are_watched_are_there_whenever_they_are_asked_for(
    pipe: kdrt.Pipeline, sampler: str
) -> None:
    with Batcher(pipe) as batcher:
        handle = batcher.submit(request(sampler=sampler, prompt=["a", "2"]), watch=True)
        made(handle)
    steps = list(handle)
    for image in (0, 1):
        own = [step for step in steps if step.image == image]
        assert [step.index for step in own] == list(range(len(own)))
        assert not torch.equal(own[0].latents, own[-1].latents)
    # The batcher is closed, and there is still a look at what it made.
    (last,) = steps[-1].decode()
    expected = made(handle).images[1]
    assert np.abs(np.asarray(last, int) - np.asarray(expected, int)).max() <= 1


def test_a_coroutine_watches_and_awaits(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    async def one(seed: int) -> tuple[list[int], Tensor]:
        handle = batcher.submit(request(seed=seed), output_type="latent", watch=True)
        indices = [step.index async for step in handle]
        return indices, (await handle).images

    async def several() -> list[tuple[list[int], Tensor]]:
        return await asyncio.gather(*map(one, range(4)))

    for seed, (indices, image) in enumerate(asyncio.run(several())):
        assert indices == [0, 1, 2]
        assert torch.equal(image, alone(pipe, seed=seed))


def test_a_request_within_a_callback(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    others: list[Handle[Any]] = []

    def again(step: ImageStep) -> None:
        others.append(batcher.submit(request(seed=step.index), output_type="latent"))

    made(batcher.submit(request(), callback=again))
    assert len(others) == 3
    for seed, handle in enumerate(others):
        assert torch.equal(latents(handle), alone(pipe, seed=seed))


def test_a_call_within_a_callback_is_refused(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    def call(step: ImageStep) -> None:
        pipe("a")

    ends_with(batcher.submit(request(), callback=call), kdrt.InvalidRequestError, "in the middle")


# One fails, and its neighbours are what they are alone.


def beside(
    pipe: kdrt.Pipeline, batcher: Batcher, **options: Any
) -> Callable[..., tuple[Handle[Any], Callable[[], None]]]:
    """Submits a request between two others; the second result checks those two."""

    def submit(**fields: Any) -> tuple[Handle[Any], Callable[[], None]]:
        with held(batcher):
            first = batcher.submit(request(seed=1, steps=4), output_type="latent")
            own = batcher.submit(request(**fields), **options)
            last = batcher.submit(request(seed=3, sampler="heun"), output_type="latent")

        def check() -> None:
            results = latents(first), latents(last)
            assert (batcher.waiting, batcher.in_flight) == (0, 0)
            assert torch.equal(results[0], alone(pipe, seed=1, steps=4))
            assert torch.equal(results[1], alone(pipe, seed=3, sampler="heun"))

        return own, check

    return submit


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpm_adaptive"])
def test_a_callback_that_raises(
    pipe: kdrt.Pipeline, batcher: Batcher, sampler: str, images: int
) -> None:
    calls: list[int] = []

    def broken(step: ImageStep) -> None:
        calls.append(step.index)
        if step.index == 1:
            raise LookupError("of the user")

    own, check = beside(pipe, batcher, callback=broken)(
        sampler=sampler, images_per_prompt=images, steps=6
    )
    ends_with(own, LookupError, "of the user")
    check()
    assert max(calls) == 1


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["callback", "image_filter", "sampler", "done"])
def test_an_exit_in_code_of_the_users_ends_its_own_request(
    pipe: kdrt.Pipeline, batcher: Batcher, kind: type[BaseException], where: str
) -> None:
    def leave(*arguments: object) -> None:
        raise kind

    options = {"callback": leave} if where == "callback" else {}
    own, check = beside(pipe, batcher, **options)(
        **({where: leave} if where in ("image_filter", "sampler") else {})
    )
    if where == "done":
        own.add_done_callback(leave)
        made(own)
    else:
        ends_with(own, kind)
    check()
    made(batcher.submit(request()))


def test_a_callback_that_returns_false(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    own, check = beside(pipe, batcher, callback=lambda step: step.index == 0)()
    ends_with(own, kdrt.CancelledError, "returned False")
    check()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpm_adaptive"])
def test_an_image_that_is_not_finite(sdxl: TinyModel, batcher: Batcher, sampler: str) -> None:
    def poisoned(**told: Tensor) -> Tensor:
        return tiny_unet(**told).masked_fill(is_poisoned(told)[:, None, None, None], torch.nan)

    sdxl.unet.network = poisoned
    own, check = beside(sdxl.pipeline, batcher)(original_size=POISON, sampler=sampler)
    ends_with(own, kdrt.NonFiniteError)
    check()


def test_no_memory_to_encode_a_prompt(sdxl: TinyModel, batcher: Batcher) -> None:
    encoder = sdxl.text_encoders[0]
    network = encoder.network
    with held(batcher):
        neighbour = batcher.submit(request(seed=1), output_type="latent")
        victim = batcher.submit(request(prompt="2 stars !", seed=2))

        def scarce(**told: Tensor) -> Any:
            if len(encoder.calls) > before + 1:
                encoder.network = network
                raise MemoryError("no memory for this prompt")
            return network(**told)

        before = len(encoder.calls)
        encoder.network = scarce
    ends_with(victim, kdrt.OutOfMemoryError, "no memory for this prompt")
    assert torch.equal(latents(neighbour), alone(sdxl.pipeline, seed=1))
    assert torch.equal(
        latents(batcher.submit(request(prompt="2 stars !", seed=2), output_type="latent")),
        alone(sdxl.pipeline, prompt="2 stars !", seed=2),
    )


def test_no_memory_for_another_shape(
    pipe: kdrt.Pipeline, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight = pipe.denoising.in_flight

    def scarce(shape: Any, *rest: Any) -> Any:
        if shape.height == 10:
            raise MemoryError("no memory for this shape")
        return in_flight(shape, *rest)

    monkeypatch.setattr(pipe.denoising, "in_flight", scarce)
    own, check = beside(pipe, batcher)(height=80)
    ends_with(own, kdrt.OutOfMemoryError, "no memory for this shape")
    check()


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_no_memory_for_so_many_rows(
    sdxl: TinyModel, batcher: Batcher, most: int, guidance_scale: float
) -> None:
    """It goes on with fewer, as long as an image alone fits."""

    def scarce(**told: Tensor) -> Tensor:
        if len(told["sample"]) > most:
            raise MemoryError("no memory for so many rows")
        return tiny_unet(**told)

    with held(batcher, guidance_scale=1.0):
        handles = [
            batcher.submit(request(seed=seed, guidance_scale=guidance_scale), output_type="latent")
            for seed in range(5)
        ]
        sdxl.unet.network = scarce
    needed = 1 if guidance_scale == 1 else 2
    if most < needed:
        for handle in handles:
            ends_with(handle, kdrt.OutOfMemoryError, "no memory for so many rows")
        return
    images = [latents(handle) for handle in handles]
    for seed, image in enumerate(images):
        assert torch.equal(image, alone(sdxl.pipeline, seed=seed, guidance_scale=guidance_scale))


def test_an_error_of_the_network_ends_those_of_its_run(sdxl: TinyModel, batcher: Batcher) -> None:
    def broken(**told: Tensor) -> Tensor:
        raise kdrt.EngineError("a broken network")

    with held(batcher) as first:
        others = [batcher.submit(request(seed=seed)) for seed in range(2)]
        sdxl.unet.network = broken
    for handle in (first, *others):
        ends_with(handle, kdrt.EngineError, "a broken network")
    sdxl.unet.network = tiny_unet
    made(batcher.submit(request()))


# After the last step.


def test_a_filter_looks_at_every_image(pipe: Any, batcher: Batcher) -> None:
    def mirror(image: Image.Image) -> Image.Image | bool:
        return False if image.getpixel((0, 0)) == (0, 0, 0) else image.rotate(180)

    result = made(batcher.submit(request(image_filter=mirror, images_per_prompt=2)))
    expected = pipe(**FIELDS, image_filter=mirror, images_per_prompt=2)
    assert result.nsfw == expected.nsfw
    assert same(result.images, expected.images)


def test_the_pixels_that_were_not_masked_are_the_images_own(demo_bundle: Path) -> None:
    pipe: Any = kdrt.load(demo_bundle, engine="onnxruntime")
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 20, 12))
    fields: dict[str, Any] = {"image": image, "mask_image": mask, "steps": 4}
    with Batcher(pipe) as batcher:
        handle = batcher.submit(request(**fields), output_type="np")
        batcher.submit(request(seed=1, height=32, width=32))
        result = made(handle).images
    kept = np.asarray(mask) == 0
    np.testing.assert_allclose(result[0][kept], np.asarray(image)[kept] / 255, rtol=0, atol=1e-6)
    expected = pipe(**{**FIELDS, **fields}, output_type="np").images
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_a_filter_that_raises(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    def broken(image: Image.Image) -> bool:
        raise LookupError("of the user")

    with held(batcher):
        own = batcher.submit(request(image_filter=broken))
        other = batcher.submit(request(seed=1), output_type="latent")
    ends_with(own, LookupError, "of the user")
    assert torch.equal(latents(other), alone(pipe, seed=1))


def checker(size: int = 8) -> TorchEngine:
    """Flags images that are more red than blue."""
    spec = EngineSpec(
        (TensorSpec("clip_input", "float32", ("B", 3, size, size)),),
        (
            TensorSpec("special_scores", "float32", ("B", 1)),
            TensorSpec("concept_scores", "float32", ("B", 1)),
        ),
    )

    class Scores(torch.nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            red, _, blue = images.mean((2, 3)).split(1, 1)
            return torch.full_like(red, -1), red - blue

    return TorchEngine(Scores(), spec)


def test_the_safety_checker_looks_at_every_image(pipe: Any, batcher: Batcher) -> None:
    engine = checker()
    pipe.engines["safety_checker"] = engine
    pipe.safety_checker = SafetyChecker(engine, pipe.calls.exclusive)
    handles = [batcher.submit(request(seed=seed)) for seed in range(12)]
    results = [made(handle) for handle in handles]
    for seed, result in enumerate(results):
        expected = pipe(**{**FIELDS, "seed": seed})
        assert result.nsfw == expected.nsfw
        assert same(result.images, expected.images)
    assert {flag for result in results for flag in result.nsfw or ()} == {True, False}


# Cancelling.


@pytest.mark.parametrize("sampler", ["euler", "dpm_adaptive"])
def test_a_request_that_waits_is_cancelled(
    pipe: kdrt.Pipeline, batcher: Batcher, sampler: str
) -> None:
    with held(batcher):
        own = batcher.submit(request(sampler=sampler), watch=True)
        other = batcher.submit(request(seed=1), output_type="latent")
        assert own.cancel()
        assert own.cancel()
    ends_with(own, kdrt.CancelledError, "this request was cancelled")
    assert not own.cancel()
    assert list(own) == []
    assert torch.equal(latents(other), alone(pipe, seed=1))


@pytest.mark.parametrize("sampler", ["euler", "dpm_adaptive"])
def test_a_request_in_flight_is_cancelled_at_the_next_tick(
    sdxl: TinyModel, batcher: Batcher, sampler: str
) -> None:
    steps: list[int] = []
    gate = Gate()

    def stop(step: ImageStep) -> None:
        steps.append(step.index)
        gate(step)

    own = batcher.submit(request(sampler=sampler, steps=5), callback=stop)
    gate.wait()
    own.cancel()
    other = batcher.submit(request(seed=1), output_type="latent")
    gate.open()
    ends_with(own, kdrt.CancelledError)
    assert steps == [0]
    assert torch.equal(latents(other), alone(sdxl.pipeline, seed=1))


def test_a_request_whose_images_are_decoded_is_cancelled(
    pipe: kdrt.Pipeline, batcher: Batcher
) -> None:
    decoding, go_on = threading.Event(), threading.Event()

    def slow(image: Image.Image) -> None:
        decoding.set()
        assert go_on.wait(PATIENCE)

    own = batcher.submit(request(image_filter=slow))
    assert decoding.wait(PATIENCE)
    other = batcher.submit(request(seed=1), output_type="latent")
    own.cancel()
    go_on.set()
    ends_with(own, kdrt.CancelledError)
    assert torch.equal(latents(other), alone(pipe, seed=1))


def test_a_coroutine_that_is_cancelled_cancels_its_request(
    pipe: kdrt.Pipeline, batcher: Batcher
) -> None:
    async def main() -> Handle[Any]:
        own = batcher.submit(request(steps=5))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(own, 0.01)
        return own

    with held(batcher):
        own = asyncio.run(main())
    ends_with(own, kdrt.CancelledError)


def test_cancelling_the_pipeline_ends_all(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    gate = Gate()
    with held(batcher):
        handles: list[Handle[Any]] = [
            batcher.submit(request(steps=5), callback=gate),
            batcher.submit(request(sampler="dpm_adaptive")),
            batcher.submit(request(height=80)),
        ]
    gate.wait()
    assert pipe.cancel()
    gate.open()
    for handle in handles:
        ends_with(handle, kdrt.CancelledError, "this call was cancelled")
    made(batcher.submit(request()))


# Closing.


def test_closing_makes_what_was_asked_for(pipe: kdrt.Pipeline) -> None:
    batcher = Batcher(pipe)
    handles = [batcher.submit(request(seed=seed), output_type="latent") for seed in range(6)]
    batcher.close()
    assert all(handle.done() for handle in handles)
    batcher.close()
    with pytest.raises(kdrt.PipelineClosedError, match="this batcher is closed"):
        batcher.submit(request())
    with pytest.raises(kdrt.PipelineClosedError), batcher:
        pass
    for seed, handle in enumerate(handles):
        assert torch.equal(latents(handle), alone(pipe, seed=seed))


def test_closing_may_cancel(pipe: kdrt.Pipeline) -> None:
    batcher = Batcher(pipe)
    with held(batcher):
        handles: list[Handle[Any]] = [
            batcher.submit(
                request(steps=5), callback=at_each_step(lambda: batcher.close(cancel=True))
            ),
            batcher.submit(request(sampler="dpm_adaptive")),
            batcher.submit(request(height=80)),
        ]
    batcher.close()
    for handle in handles:
        assert handle.done()
        ends_with(handle, kdrt.CancelledError, "closed before this request was made")


class Watched(Batcher):
    """Opens a gate when it is closed, and remembers how."""

    def __init__(self, pipe: kdrt.Pipeline, gate: Gate) -> None:
        super().__init__(pipe)
        self._gate = gate
        self.closed: list[bool] = []

    def close(self, *, cancel: bool = False) -> None:
        self.closed.append(cancel)
        self._gate.open()
        super().close(cancel=cancel)


def test_a_block_closes_at_its_end(pipe: kdrt.Pipeline) -> None:
    gate = Gate()
    with Watched(pipe, gate) as batcher:
        handle = batcher.submit(request(), callback=gate)
        gate.wait()
    assert handle.done()
    assert made(handle).seeds == [7]
    assert batcher.closed == [False]


def test_a_block_that_raises_cancels(pipe: kdrt.Pipeline) -> None:
    gate = Gate()
    batcher = Watched(pipe, gate)

    def block() -> None:
        with batcher:
            batcher.submit(request(), callback=gate)
            gate.wait()
            raise LookupError("of the user")

    with pytest.raises(LookupError, match="of the user"):
        block()
    assert batcher.closed == [True]
    assert pipe("a", steps=1, seed=0).seeds == [0]


def test_a_callback_closes_the_batcher(pipe: kdrt.Pipeline) -> None:
    batcher = Batcher(pipe)
    handle = batcher.submit(request(), callback=at_each_step(batcher.close))
    assert made(handle).seeds == [7]
    batcher.close()
    pipe("a", steps=1)


def test_a_filter_closes_the_batcher(pipe: kdrt.Pipeline) -> None:
    """It runs in a thread that the batcher's waits for."""
    batcher = Batcher(pipe)

    def close(image: Image.Image) -> None:
        batcher.close()

    assert made(batcher.submit(request(image_filter=close))).seeds == [7]
    batcher.close()


def test_closing_the_pipeline_waits_for_what_is_being_made(pipe: kdrt.Pipeline) -> None:
    with Batcher(pipe) as batcher:
        gate = Gate()
        handle = batcher.submit(request(), callback=gate)
        gate.wait()
        with ThreadPoolExecutor(1) as pool:
            closed = pool.submit(pipe.close)
            gate.open()
            closed.result(PATIENCE)
        assert made(handle).seeds == [7]
        with pytest.raises(kdrt.PipelineClosedError, match="this pipeline is closed"):
            batcher.submit(request())


def test_what_waits_for_a_pipeline_that_is_closed_is_told(
    pipe: kdrt.Pipeline, batcher: Batcher
) -> None:
    steps = pipe.stream("a", steps=2)
    next(steps)
    with ThreadPoolExecutor(1) as pool:
        handle = pool.submit(batcher.submit, request()).result(PATIENCE)
    pipe.close()  # at the end of this thread's generation
    steps.close()
    ends_with(handle, kdrt.PipelineClosedError, "this pipeline is closed")


def test_a_callback_closes_the_pipeline(pipe: kdrt.Pipeline) -> None:
    with Batcher(pipe) as batcher:
        with held(batcher):
            handle = batcher.submit(request(), callback=at_each_step(pipe.close))
            other = batcher.submit(request(steps=5))
        ends_with(handle, kdrt.CancelledError)
        ends_with(other, kdrt.CancelledError)
        with pytest.raises(kdrt.PipelineClosedError, match="this pipeline is closed"):
            batcher.submit(request())


def test_direct_calls_wait_and_come_through(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    with ThreadPoolExecutor(2) as pool:
        with held(batcher):
            calls = [pool.submit(alone, pipe, seed=seed) for seed in (1, 2)]
            handle = batcher.submit(request(seed=3), output_type="latent")
        images = [call.result(PATIENCE) for call in calls]
    images.append(latents(handle))
    for seed, image in enumerate(images, 1):
        assert torch.equal(image, alone(pipe, seed=seed))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def is_closing(thread: threading.Thread) -> bool:
    """Whether a thread waits within `Batcher.close`."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or frame.f_code.co_filename != threading.__file__:
        return False
    while frame is not None and frame.f_code is not Batcher.close.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process there")
def test_closing_again_after_it_was_interrupted_waits(pipe: kdrt.Pipeline) -> None:
    main, gate, returned = threading.main_thread(), Gate(), threading.Event()
    if threading.current_thread() is not main:
        pytest.skip("only the main thread is interrupted")

    def act_when_it_waits(act: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            while not is_closing(main) and not returned.wait(0.001):
                pass
            act()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    batcher = Batcher(pipe)
    handle = batcher.submit(request(), callback=gate)
    gate.wait()
    interrupting = act_when_it_waits(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        batcher.close()
    interrupting.join()
    opening = act_when_it_waits(gate.open)
    batcher.close()
    was_made = handle.done()
    returned.set()
    opening.join()
    assert was_made


def test_a_batcher_that_nobody_closed_ends_its_threads(pipe: kdrt.Pipeline) -> None:
    before = set(threading.enumerate())
    batcher = Batcher(pipe)
    handle = batcher.submit(request())
    made(handle)
    started = set(threading.enumerate()) - before
    mine = [t for t in started if t.name.startswith(("kdrt-batcher", "kdrt-decode"))]
    assert mine
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    for thread in mine:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert made(handle).seeds == [7]


def test_a_request_whose_batcher_is_forgotten_says_so(pipe: kdrt.Pipeline) -> None:
    gate = Gate()
    handle = Batcher(pipe).submit(request(), callback=gate)
    gate.open()
    ends_with(handle, kdrt.CancelledError, "the batcher was let go of before")


def test_a_batcher_that_is_forgotten_in_the_middle_of_a_call(pipe: kdrt.Pipeline) -> None:
    """Its thread waits for this one, so this one must not wait for it."""
    batchers = [Batcher(pipe)]

    gone = weakref.ref(batchers[0])
    steps = pipe.stream("a", steps=2)
    next(steps)
    with ThreadPoolExecutor(1) as pool:
        handle = pool.submit(batchers[0].submit, request()).result(PATIENCE)
    batchers.clear()
    gc.collect()
    assert gone() is None
    steps.close()
    handle.exception(PATIENCE)


def test_a_batcher_that_its_own_thread_forgets(pipe: kdrt.Pipeline) -> None:
    def run() -> tuple[Handle[Any], weakref.ref[Batcher]]:
        batchers = [Batcher(pipe)]
        handle = batchers[0].submit(request(), callback=at_each_step(batchers.clear))
        return handle, weakref.ref(batchers[0])

    handle, batcher = run()
    handle.exception(PATIENCE)
    assert batcher() is None


LEAVING = """
import kdrt
from kdrt.pipeline.pipeline import Pipeline
from pathlib import Path
from tests.support.tiny_model import tiny_model

batcher = kdrt.Batcher(tiny_model(Path("model")).pipeline)
handles = [batcher.submit({"prompt": "a", "steps": 200}) for _ in range(5)]
print("left")
"""


def test_the_interpreter_ends_while_requests_are_made(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left\n", "")


def test_two_batchers_of_one_pipeline(pipe: kdrt.Pipeline) -> None:
    with Batcher(pipe) as one, Batcher(pipe) as other:
        handles = [
            (one, other)[seed % 2].submit(request(seed=seed), output_type="latent")
            for seed in range(6)
        ]
        images = [latents(handle) for handle in handles]
    for seed, image in enumerate(images):
        assert torch.equal(image, alone(pipe, seed=seed))


def test_counts_are_told_at_any_time(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    with held(batcher) as first:
        handles = [batcher.submit(request(steps=2)) for _ in range(3)]
        assert batcher.in_flight == 1
    several: list[Handle[Any]] = [first, *handles]
    for number in range(150):
        several.append(batcher.submit(request(steps=1, height=64 + 8 * (number % 12))))
    while not all(handle.done() for handle in several):
        assert batcher.waiting >= 0
        assert batcher.in_flight <= 12 * batcher.max_images
        time.sleep(0.001)  # asking without a pause takes the interpreter from what is asked
    assert (batcher.waiting, batcher.in_flight) == (0, 0)


# What is kept.


def test_nothing_is_kept_of_requests_that_are_over(pipe: kdrt.Pipeline, batcher: Batcher) -> None:
    handles = []
    for seed in range(200):
        fields: dict[str, Any] = {"seed": seed, "steps": 1 + seed % 3}
        if seed % 10 == 0:
            fields["sampler"] = "dpm_adaptive"
        handles.append(batcher.submit(request(**fields), watch=seed % 7 == 0))
        if seed % 9 == 0:
            handles[-1].cancel()
    for handle in handles:
        handle.exception(PATIENCE)
    made(batcher.submit(request()))
    assert (batcher.waiting, batcher.in_flight) == (0, 0)
    results = [weakref.ref(made(handle)) for handle in handles if handle.exception() is None]
    del handle, handles
    gc.collect()
    assert [result for result in results if result() is not None] == []
    assert sum(type(each) is Order for each in gc.get_objects()) <= 1


def test_a_handle_that_is_kept_keeps_only_its_result(
    pipe: kdrt.Pipeline, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[weakref.ref[Any]] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            value = function(*arguments)
            others.append(weakref.ref(value))
            return value

        return run

    for name in ("resolve", "encode", "prepare"):
        monkeypatch.setattr(pipe, name, watched(getattr(pipe, name)))
    handle = batcher.submit(request(), watch=True)
    made(handle)
    assert len(others) == 3
    made(batcher.submit(request(prompt="2 stars")))
    gc.collect()
    assert [other() for other in others[:3]] == [None, None, None]
    assert made(handle).infotexts[0].seed == 7


def test_a_handle_that_is_kept_keeps_no_pipeline(tmp_path: Path) -> None:
    pipe = tiny_model(tmp_path).pipeline
    with Batcher(pipe) as batcher:
        handle = batcher.submit(request())
    there = weakref.ref(pipe)
    del pipe, batcher
    gc.collect()
    assert there() is None
    assert made(handle).seeds == [7]
    assert not handle.cancel()


# What is refused.


@pytest.mark.parametrize(
    ("fields", "options", "match"),
    [
        ({"steps": 0}, {}, "steps"),
        ({"height": 65}, {}, "multiple of 8"),
        ({"sampler": "none"}, {}, "sampler"),
        ({"stepz": 3}, {}, "stepz"),
        ({"prompt": 3}, {}, "prompt"),
        ({}, {"callback": 3}, "callback"),
        ({}, {"watch": "yes"}, "watch"),
        ({}, {"output_type": "jpeg"}, "output_type"),
        ({}, {"loras": {"style": 1.0}}, "no LoRA called 'style' is loaded; loaded: none"),
        ({}, {"loras": 3}, "give LoRAs' scales by their names, not 3"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_at_once(
    pipe: kdrt.Pipeline, batcher: Batcher, fields: Any, options: Any, match: str
) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=match):
        batcher.submit(request(**fields), **options)
    assert (batcher.waiting, batcher.in_flight) == (0, 0)
    made(batcher.submit(request(steps=1)))


def test_a_pipeline_that_loads_its_engines_in_turn_is_refused(demo_bundle: Path) -> None:
    pipe = kdrt.load(demo_bundle, engine="onnxruntime", low_vram=True)
    before = threads()
    with pytest.raises(kdrt.InvalidRequestError, match="load it without low_vram"):
        Batcher(pipe)
    assert threads() == before


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_images": 0}, {"max_rows": 1000}])
def test_numbers_out_of_range_are_refused(pipe: kdrt.Pipeline, options: dict[str, Any]) -> None:
    before = threads()
    with pytest.raises(kdrt.InvalidRequestError, match=next(iter(options))):
        Batcher(pipe, **options)
    assert threads() == before


def test_a_batcher_of_something_else_is_refused() -> None:
    demo: Any = "demo"
    with pytest.raises(kdrt.InvalidRequestError, match="not for 'demo'"):
        Batcher(demo)


def test_a_feature_that_the_bundle_lacks_is_refused(batcher: Batcher) -> None:
    asked = request(ip_adapter_image_embeds=torch.zeros(1, 4))
    with pytest.raises(kdrt.InvalidRequestError, match=r"no UNet with ip-adapter.*--ip-adapter"):
        batcher.submit(asked)


def test_guidance_needs_two_rows(pipe: kdrt.Pipeline) -> None:
    with Batcher(pipe, max_rows=1) as batcher:
        with pytest.raises(kdrt.InvalidRequestError, match="takes 2 rows"):
            batcher.submit(request())
        handle = batcher.submit(request(guidance_scale=1), output_type="latent")
        assert torch.equal(latents(handle), alone(pipe, guidance_scale=1))


def test_a_thread_in_the_middle_of_a_generation_is_refused(
    pipe: kdrt.Pipeline, batcher: Batcher
) -> None:
    for _ in pipe.stream("a", steps=2):
        with pytest.raises(kdrt.InvalidRequestError, match="in the middle of a generation"):
            batcher.submit(request())
    made(batcher.submit(request()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that is the point
@pytest.mark.parametrize("asks", ["submits", "waits"])
def test_a_forked_process_is_told_to_spawn(batcher: Batcher, asks: str) -> None:
    reader, writer = os.pipe()
    with held(batcher):
        handle = batcher.submit(request(seed=2))
        child = os.fork()
    if child == 0:
        try:
            if asks == "submits":
                batcher.submit(request())
            else:
                handle.result()
            os.write(writer, b"nothing")
        except kdrt.EngineError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        assert "load it in each worker, or start workers by spawn" in answer.read()
    made(batcher.submit(request()))


# LoRAs.


def with_two_loras(model: TinyBundle, folder: Path) -> Any:
    """A pipeline that uses neither "a" nor "b", but has them."""
    pipe: Any = kdrt.load(model.bundle, engine="onnxruntime")
    theirs = networks(model.diffusers())
    for seed, (name, modules) in enumerate({"a": ATTENTION, "b": TEXT}.items()):
        file = folder / f"{name}.safetensors"
        save_file(kohya(random_lora(theirs, modules, seed=seed)), file)
        pipe.adapters.load_lora(file, name, scale=0.0)
    return pipe


def test_images_go_on_after_a_turn_of_other_loras(
    tiny_models: Callable[[str], TinyBundle], tmp_path: Path
) -> None:
    """They take longer than a turn, so the weights change while they are in flight."""
    pipe = with_two_loras(tiny_models("sdxl"), tmp_path)
    small: dict[str, Any] = {"height": 32, "width": 32, "steps": GROUP_TICKS + 6}
    samplers = ("euler_ancestral", euler)
    with Batcher(pipe) as batcher:
        with held(batcher, **{**small, "steps": 2}):
            asked = [
                (
                    loras,
                    sampler,
                    batcher.submit(
                        request(sampler=sampler, **small), output_type="latent", loras=loras
                    ),
                )
                for loras in ({"a": 1.0}, {"b": 0.7})
                for sampler in samplers
            ]
        results = [(loras, sampler, latents(handle)) for loras, sampler, handle in asked]
    for loras, sampler, result in results:
        pipe.adapters.set_loras(loras)
        expected = alone(pipe, sampler=sampler, **small)
        bound = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(result, expected, rtol=0, atol=bound)


def test_sets_of_loras_take_turns(tiny_models: Callable[[str], TinyBundle], tmp_path: Path) -> None:
    pipe = with_two_loras(tiny_models("sdxl"), tmp_path)
    own = {"a": 0.5, "b": 0.0}
    pipe.adapters.set_loras(own)
    before = {name: lora.scale for name, lora in pipe.adapters.loras.items()}
    sets: list[dict[str, float] | None] = [None, {"a": 1.0}, {"b": 0.7}, {}, {"a": 0.3, "b": 1.0}]
    small: dict[str, Any] = {"height": 32, "width": 32, "steps": 3}
    with Batcher(pipe) as batcher:
        with held(batcher, **small):
            asked = [
                (
                    loras,
                    seed,
                    sampler,
                    batcher.submit(
                        request(seed=seed, sampler=sampler, **small),
                        output_type="latent",
                        loras=loras,
                    ),
                )
                for seed, sampler in enumerate(("euler", "dpm_adaptive"))
                for loras in sets
            ]
        results = [(loras, seed, sampler, made(handle)) for loras, seed, sampler, handle in asked]
        with pytest.raises(
            kdrt.InvalidRequestError, match="no LoRA called 'c' is loaded; loaded: a, b"
        ):
            batcher.submit(request(), loras={"c": 1.0})
        with pytest.raises(
            kdrt.InvalidRequestError, match="scale of LoRA 'a' must be a finite number, not nan"
        ):
            batcher.submit(request(), loras={"a": float("nan")})
    assert {name: lora.scale for name, lora in pipe.adapters.loras.items()} == before
    distinct = set()
    for loras, seed, sampler, result in results:
        pipe.adapters.set_loras(own if loras is None else loras)
        expected = pipe(
            **{**FIELDS, **small, "seed": seed, "sampler": sampler}, output_type="latent"
        )
        bound = 1e-5 * float(expected.images.abs().max())
        torch.testing.assert_close(result.images, expected.images, rtol=0, atol=bound)
        assert result.infotexts == expected.infotexts
        distinct.add(float(expected.images.sum()))
    assert len(distinct) == len(results)


def test_sets_of_loras_with_the_same_effect_share(
    tiny_models: Callable[[str], TinyBundle], tmp_path: Path
) -> None:
    pipe = with_two_loras(tiny_models("sdxl"), tmp_path)
    changes: list[Any] = []
    set_loras = pipe.adapters.set_loras

    def noted(scales: Any) -> Any:
        changes.append(scales)
        return set_loras(scales)

    pipe.adapters.set_loras = noted
    sets: list[Any] = [{"a": 1}, {"a": 1.0}, {"b": 0.0, "a": np.float32(1)}]
    with Batcher(pipe) as batcher:
        with held(batcher):
            asked = [batcher.submit(request(), loras=loras) for loras in sets]
        for handle in asked:
            made(handle)
    assert changes == [{"a": 1.0}, {}]


def test_a_lora_that_cannot_be_used_fails_those_that_ask_for_it(
    tiny_models: Callable[[str], TinyBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = with_two_loras(tiny_models("sdxl"), tmp_path)
    set_loras = pipe.adapters.set_loras

    def refuse(scales: Any) -> Any:
        if scales:
            raise MemoryError("no memory for other weights")
        return set_loras(scales)

    monkeypatch.setattr(pipe.adapters, "set_loras", refuse)
    small: dict[str, Any] = {"height": 32, "width": 32, "steps": 3}
    with Batcher(pipe) as batcher:
        with held(batcher, **small):
            own = [batcher.submit(request(**small), loras={"a": 1.0}) for _ in range(2)]
            other = batcher.submit(request(**small), output_type="latent")
        for handle in own:
            with pytest.raises((kdrt.OutOfMemoryError, MemoryError), match="other weights"):
                made(handle)
        result = latents(other)
    expected = alone(pipe, **small)
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=0, atol=bound)
