"""More models than there is memory for: loaded when they are asked for, and unloaded for others."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch

import kdrt
from kdrt.errors import InvalidRequestError, PipelineClosedError
from kdrt.serve.errors import DeadlineError, LoadFailedError, QueueFullError, ShuttingDownError
from kdrt.serve.footprint import Footprint
from kdrt.serve.replica import ServiceReplica
from kdrt.serve.residents import Residents
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.named_bundles import named_bundle
from tests.support.serving import running, until, value_of, waiting_model

SHORT = kdrt.Request(prompt="a red circle", seed=7, steps=2)
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ModelSettings]:
    """Three of the same size that make other images."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        ModelSettings(bundle=str(named_bundle(demo_bundle, folder / name, scale=scale)))
        for name, scale in zip(NAMES, (1.0, 1.02, 0.98), strict=True)
    ]


@pytest.fixture(scope="module")
def all_loaded(bundles: list[ModelSettings]) -> Iterator[ImageService]:
    service = ImageService(bundles, ServiceSettings(warmup=(), threads=1))
    service.load()
    yield service
    service.close()


@pytest.fixture(scope="module")
def needed(all_loaded: ImageService) -> int:
    """Bytes that one of them needs."""
    return Footprint(all_loaded.model().bundle, all_loaded.settings).size


@pytest.fixture(scope="module")
def one_by_one(bundles: list[ModelSettings], needed: int) -> Iterator[ImageService]:
    """With memory for one model at a time."""
    settings = ServiceSettings(warmup=(), threads=1, memory=needed + 1, max_waiting=8)
    service = ImageService(bundles, settings)
    service.load()
    yield service
    service.close()


@pytest.fixture
def service(one_by_one: ImageService) -> ImageService:
    """The same; the first model is loaded."""
    asyncio.run(made(one_by_one, "one"))
    until(lambda: loaded(one_by_one) == ["one"])
    return one_by_one


async def made(service: ImageService, name: str) -> bytes:
    submission = await service.submit(SHORT, model=name)
    return cast(bytes, (await submission.result()).images[0].tobytes())


def loaded(service: ImageService) -> list[str]:
    return [name for name, model in service.models.items() if service.residents.is_loaded(model)]


def waiting(service: ImageService) -> list[int]:
    return [model.queue.waiting for model in service.models.values()]


def test_one_by_one_they_make_what_they_make_when_all_are_loaded(
    service: ImageService, all_loaded: ImageService
) -> None:
    async def crowd(service: ImageService) -> list[bytes]:
        return await asyncio.gather(*(made(service, name) for name in NAMES * 3))

    expected = asyncio.run(crowd(all_loaded))
    assert len(set(expected)) == len(NAMES)
    assert loaded(service) == ["one"]
    first = weakref.ref(service.model().pipe)
    assert asyncio.run(crowd(service)) == expected
    until(lambda: value_of(service, "kdrt_models_loaded") == 1)
    assert waiting(service) == [0, 0, 0]
    gc.collect()
    assert first() is None
    loads = [
        value_of(service, "kdrt_model_loads_total", model=name, outcome="loaded") for name in NAMES
    ]
    # Those who came for the first when others waited got it after these.
    assert loads == [2, 1, 1]
    assert sum(value_of(service, "kdrt_model_unloads_total", model=name) for name in NAMES) == 3
    taken = [value_of(service, "kdrt_model_bytes", model=name) for name in NAMES]
    assert [size > 0 for size in taken] == [name in loaded(service) for name in NAMES]


def test_as_many_as_fit_are_loaded_at_the_start(bundles: list[ModelSettings], needed: int) -> None:
    service = ImageService(bundles, ServiceSettings(warmup=(), threads=1, memory=2 * needed + 1))
    models = service.models.values()
    residents = Residents(models, service.settings, service.metrics.residency, lambda _: 0)
    residents.start()
    assert [residents.is_loaded(model) for model in models] == [True, True, False]
    residents.close()


def test_one_that_is_beyond_the_memory_alone_is_refused(bundles: list[ModelSettings]) -> None:
    said = r"'one' needs at least [\d.]+ MB of memory, and all .* 1\.0 MB: give more with --memory"
    with pytest.raises(InvalidRequestError, match=said):
        ImageService(bundles, ServiceSettings(memory=10**6))


def test_who_gives_up_waiting_leaves_no_trace(service: ImageService) -> None:
    async def crowd() -> None:
        with waiting_model(service):
            busy = await service.submit(SHORT)
            impatient = asyncio.ensure_future(service.submit(SHORT, model="two"))
            late = asyncio.ensure_future(service.submit(SHORT, model="two", deadline=0.01))
            with pytest.raises(DeadlineError, match=r"not loaded within 0\.01 s"):
                await late
            behind = asyncio.ensure_future(service.submit(SHORT))
            await asyncio.sleep(0)
            assert waiting(service) == [2, 1, 0]
            assert not behind.done()
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            other = await behind  # nobody is before it any more
            assert waiting(service) == [2, 0, 0]
        await busy.result()
        await other.result()

    asyncio.run(crowd())
    assert loaded(service) == ["one"]


def test_the_queue_bounds_those_who_wait_for_a_load(service: ImageService) -> None:
    async def crowd() -> list[Any]:
        with waiting_model(service):
            busy = await service.submit(SHORT)
            many = [asyncio.ensure_future(service.submit(SHORT, model="two")) for _ in range(8)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await service.submit(SHORT, model="two")
        await busy.result()
        return await asyncio.gather(*(each.result() for each in await asyncio.gather(*many)))

    assert len(asyncio.run(crowd())) == 8


def test_one_that_cannot_be_loaded_fails_those_who_wait_and_is_tried_again(
    service: ImageService, all_loaded: ImageService
) -> None:
    folder = service.model("two").bundle.path
    away = folder.with_name("away")

    async def ask() -> None:
        folder.rename(away)
        answers = [made(service, "two") for _ in range(2)]
        for answer in await asyncio.gather(*answers, return_exceptions=True):
            assert isinstance(answer, LoadFailedError)
            assert "the model 'two' could not be loaded" in str(answer)
        away.rename(folder)
        assert await made(service, "two") == await made(all_loaded, "two")

    asyncio.run(ask())
    assert waiting(service) == [0, 0, 0]
    failed = value_of(service, "kdrt_model_loads_total", model="two", outcome="failed")
    assert failed == 1


def test_a_device_that_has_failed_for_good_does_not_end_the_loading(
    service: ImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    folder = service.model("three").bundle.path
    away = folder.with_name("away")
    folder.rename(away)
    with pytest.raises(LoadFailedError):
        asyncio.run(made(service, "three"))
    away.rename(folder)
    assert asyncio.run(made(service, "three"))


def test_a_look_loads_nothing(service: ImageService) -> None:
    latents = torch.zeros(1, 4, 16, 16)
    replica = ServiceReplica(service)
    assert asyncio.run(replica.preview("one", latents))
    with pytest.raises(PipelineClosedError, match="'two' is not loaded"):
        asyncio.run(replica.decode("two", latents))
    assert loaded(service) == ["one"]


def test_a_drain_refuses_those_who_wait_for_a_load(
    bundles: list[ModelSettings], needed: int
) -> None:
    service = ImageService(bundles, ServiceSettings(warmup=(), threads=1, memory=needed + 1))
    service.load()

    async def drain() -> None:
        with waiting_model(service):
            await service.submit(SHORT)
            late = asyncio.ensure_future(service.submit(SHORT, model="two"))
            await asyncio.sleep(0)
            draining = asyncio.ensure_future(service.drain(0))
            with pytest.raises(ShuttingDownError):
                await late
        await draining

    asyncio.run(drain())
    service.close()
    with pytest.raises(ShuttingDownError):
        asyncio.run(service.residents.turn(service.model(), 1, 10))
    assert waiting(service) == [0, 0, 0]


def test_a_client_that_vanishes_does_not_wait_for_a_load(service: ImageService) -> None:
    body = {"model": "two", "prompt": "a red circle", "steps": 2}
    with running(service) as url:
        assert httpx.get(f"{url}/v2/models/one/ready").json() == {"name": "one", "ready": True}
        answer = httpx.get(f"{url}/v2/models/two/ready")
        assert (answer.status_code, answer.json()) == (503, {"name": "two", "ready": False})
        with waiting_model(service):
            busy = asyncio.run(service.residents.turn(service.model(), 1, 10))
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/generate", json=body, timeout=0.1)
            until(lambda: value_of(service, "kdrt_errors_total", kind="client_gone") == 1)
            assert waiting(service) == [1, 0, 0]
        busy.submit(SHORT, None, watch=False, on_end=lambda: None).result()
        busy.was_read()
    assert loaded(service) == ["one"]
