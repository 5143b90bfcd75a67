"""The service without HTTP: accepted, refused, late, cancelled, drained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import save_file

import kdrt
from kdrt.errors import BundleError, InvalidRequestError
from kdrt.serve.errors import (
    DeadlineError,
    NotReadyError,
    QueueFullError,
    RequestError,
    ShuttingDownError,
    UnknownModelError,
)
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.serving import run, value_of, waiting_model
from tests.support.tiny_bundles import TinyModel

SHORT = kdrt.Request(prompt="a red circle", seed=7, steps=2)


async def make(service: ImageService, request: kdrt.Request = SHORT, **options: Any) -> Any:
    return await (await service.submit(request, **options)).result()


def test_an_image_is_the_one_that_a_call_makes(service: ImageService) -> None:
    result = run(lambda: make(service))
    alone = service.model().pipe.generate(SHORT)
    assert result.seeds == [7]
    assert result.in_flight
    assert result.images[0].tobytes() == alone.images[0].tobytes()


def test_steps_come_as_they_are_taken(service: ImageService) -> None:
    async def watch() -> list[int]:
        submission = await service.submit(SHORT, watch=True)
        steps = [step.index async for step in submission]
        await submission.result()
        assert submission.steps == 2
        return steps

    assert run(watch) == [0, 1]


def test_it_counts_what_it_makes(service: ImageService) -> None:
    names = ["kdrt_images_total", "kdrt_request_seconds_count", "kdrt_queue_seconds_count"]
    before = [value_of(service, name, model="demo") for name in names]
    ticks = value_of(service, "kdrt_tick_rows_sum", model="demo")
    run(lambda: make(service, kdrt.Request(prompt="a", images_per_prompt=2, steps=3)))
    after = [value_of(service, name, model="demo") for name in names]
    assert [a - b for a, b in zip(after, before, strict=True)] == [2, 1, 1]
    # Two images with guidance, three steps.
    assert value_of(service, "kdrt_tick_rows_sum", model="demo") - ticks == 2 * 2 * 3
    for stage in ("encode", "tick", "decode"):
        assert value_of(service, "kdrt_stage_seconds_count", model="demo", stage=stage) > 0


def test_a_request_alone_and_in_a_crowd_is_the_same_image(service: ImageService) -> None:
    async def crowd() -> list[Any]:
        others = [kdrt.Request(prompt="a star", steps=n, sampler="euler") for n in (1, 5)]
        return await asyncio.gather(*(make(service, each) for each in (SHORT, *others)))

    alone = run(lambda: make(service)).images[0]
    together = run(crowd)[0].images[0]
    assert together.tobytes() == alone.tobytes()


def test_no_more_wait_than_allowed(service: ImageService) -> None:
    async def crowd() -> None:
        with waiting_model(service):
            accepted = [await service.submit(SHORT) for _ in range(4)]
            assert service.model().queue.waiting == 4
            with pytest.raises(QueueFullError) as error:
                await service.submit(SHORT)
            assert error.value.retry_after >= 1
        for each in accepted:
            await each.result()
        await make(service)

    run(crowd)
    assert (service.model().queue.waiting, service.model().queue.running) == (0, 0)


def test_what_is_late_is_cancelled(service: ImageService) -> None:
    async def late() -> None:
        with waiting_model(service):
            submission = await service.submit(SHORT, deadline=0.01)
            await asyncio.sleep(0.05)
        with pytest.raises(DeadlineError, match=r"not made within 0\.01 s"):
            await submission.result()

    run(late)
    assert service.model().queue.waiting == 0


def test_a_coroutine_that_is_cancelled_cancels_its_request(service: ImageService) -> None:
    async def leave() -> None:
        with waiting_model(service):
            submission = await service.submit(SHORT)
            waiting = asyncio.ensure_future(submission.result())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await make(service)  # what comes after has seen the cancelling

    before = value_of(service, "kdrt_images_total", model="demo")
    run(leave)
    assert value_of(service, "kdrt_images_total", model="demo") - before == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 61}, "this server makes 60"),
        ({"sampler": "nonsense"}, "unknown sampler"),
        ({"width": 65}, "multiple of 4"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(
    service: ImageService, fields: dict[str, Any], said: str
) -> None:
    request = cast(kdrt.Request, {"prompt": "a", **fields})
    with pytest.raises(InvalidRequestError, match=said):
        run(lambda: service.submit(request))
    assert service.model().queue.waiting == 0


def test_unknown_names_are_refused(service: ImageService) -> None:
    with pytest.raises(UnknownModelError, match="no model 'dmo' is served; did you mean 'demo'"):
        run(lambda: service.submit(SHORT, model="dmo"))
    with pytest.raises(RequestError, match="no LoRA 'style' is registered"):
        run(lambda: service.submit(SHORT, loras={"style": 1.0}))


def test_nothing_is_taken_before_it_is_loaded(demo_bundle: Path) -> None:
    service = ImageService([ModelSettings(bundle=str(demo_bundle))])
    assert not service.is_ready
    with pytest.raises(NotReadyError):
        run(lambda: service.submit(SHORT))


def test_bundles_are_looked_at_before_anything_is_loaded(demo_bundle: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle 'nothing'"):
        ImageService([ModelSettings(bundle="nothing")])
    demo = ModelSettings(bundle=str(demo_bundle))
    with pytest.raises(InvalidRequestError, match="two bundles are called 'demo'"):
        ImageService([demo, demo])
    with pytest.raises(InvalidRequestError, match="nothing to serve"):
        ImageService([])


@pytest.fixture
def own(demo_bundle: Path) -> ImageService:
    """A service that a test may end."""
    settings = ServiceSettings(warmup=(), threads=1)
    service = ImageService([ModelSettings(bundle=str(demo_bundle))], settings)
    service.load()
    return service


def test_a_drain_finishes_what_runs_and_takes_nothing_more(own: ImageService) -> None:
    async def drain() -> Any:
        submission = await own.submit(SHORT)
        draining = asyncio.ensure_future(own.drain(60))
        await asyncio.sleep(0)
        assert not own.is_ready
        with pytest.raises(ShuttingDownError):
            await own.submit(SHORT)
        await draining
        return await submission.result()

    assert run(drain).seeds == [7]
    own.close()


def test_a_drain_cancels_what_is_left_after_its_time(own: ImageService) -> None:
    async def drain() -> None:
        with waiting_model(own):
            submission = await own.submit(SHORT)
            draining = asyncio.ensure_future(own.drain(0))
            await asyncio.sleep(0.01)
        await draining
        with pytest.raises(ShuttingDownError, match="cancelled this request"):
            await submission.result()

    run(drain)
    own.close()
    own.close()


def test_models_and_loras_are_used_by_their_names(
    demo_bundle: Path, tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    tiny = tiny_models("sd")
    save_file(
        kohya(random_lora(networks(tiny.diffusers()), ("to_q",))), tmp_path / "style.safetensors"
    )
    loras = {"style": tmp_path / "style.safetensors"}
    models = [
        ModelSettings(bundle=str(demo_bundle)),
        ModelSettings(bundle=str(tiny.bundle), loras=loras),
    ]
    service = ImageService(models, ServiceSettings(warmup=(), threads=1))
    service.load()
    name = [*service.models][1]
    request = kdrt.Request(prompt="a star", seed=1, steps=1, width=32, height=32)
    plain, styled, again = (
        run(partial(make, service, request, model=name, loras=chosen)).images[0]
        for chosen in (None, {"style": 1.0}, None)
    )
    assert styled.tobytes() != plain.tobytes()
    assert again.tobytes() == plain.tobytes()
    with pytest.raises(RequestError, match="no LoRA 'style' is registered for demo"):
        run(lambda: service.submit(SHORT, loras={"style": 1.0}))
    service.close()


def test_a_lora_that_does_not_fit_is_refused_before_anything_is_loaded(
    demo_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"nothing")
    models = [
        ModelSettings(bundle=str(demo_bundle), loras={"style": tmp_path / "style.safetensors"})
    ]
    with pytest.raises(InvalidRequestError, match=r"style\.safetensors"):
        ImageService(models)


def test_places_of_this_machine_are_not_told(service: ImageService, demo_bundle: Path) -> None:
    advice = f"build it with `kdrt build {demo_bundle} --here`, or see {demo_bundle.parent.parent}"
    assert service.without_private(advice) == "build it with `kdrt build … --here`, or see …"
    assert service.without_private("served: demo") == "served: demo"
