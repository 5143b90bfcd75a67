"""A service whose images replicas make: what clients see of it, and what becomes of requests whose
replica ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from torch import Tensor

import kdrt
from kdrt.errors import CancelledError, KdrtError
from kdrt.serve.app import create_app
from kdrt.serve.errors import (
    DeadlineError,
    InterruptedRequestError,
    LimitError,
    LoadFailedError,
    NotReadyError,
    QueueFullError,
    ReplicaLostError,
    ShuttingDownError,
)
from kdrt.serve.limits import RequestLimits
from kdrt.serve.remote import RemoteService, replica_settings
from kdrt.serve.replica import Replica, ServiceReplica
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.replicas import FakeReplica, FakeReplicas, replicas_of
from tests.support.serving import client_of, events_of, image_of, run, value_of

SETTINGS = ServiceSettings(limits=RequestLimits(images=4), max_waiting=4)
SHORT = kdrt.Request(prompt="a red circle", seed=7, steps=2)


@pytest.fixture
def remote(demo_bundle: Path) -> Callable[..., RemoteService]:
    """Makes a service of such replicas, which is loaded."""

    def made(*replicas: Replica) -> RemoteService:
        models = [ModelSettings(bundle=str(demo_bundle))]
        service = RemoteService(models, SETTINGS, FakeReplicas(*replicas))
        service.load()
        return service

    return made


def counts(service: ImageService) -> tuple[int, int]:
    queue = service.model().queue
    return queue.waiting, queue.running


async def settled() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_images_are_counted_from_queue_to_end(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        replica = FakeReplica()
        service = remote(replica)
        replica.go.clear()
        replica.finish.clear()
        submission = await service.submit(SHORT)
        assert (submission.steps, submission.images, submission.model) == (2, 1, "demo")
        assert counts(service) == (1, 0)
        replica.go.set()
        await settled()
        assert counts(service) == (0, 1)
        replica.finish.set()
        assert (await submission.result()).images
        await settled()
        assert counts(service) == (0, 0)
        assert value_of(service, "kdrt_images_total", model="demo") == 1
        assert value_of(service, "kdrt_queue_seconds_count", model="demo") == 1

    run(made)


def test_what_had_not_begun_goes_to_another_replica(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        first, second = FakeReplica(), FakeReplica()
        service = remote(first, second)
        first.go.clear()
        submission = await service.submit(SHORT)
        first.lose()
        assert (await submission.result()).images
        assert len(first.asked) == len(second.asked) == 1
        await settled()
        assert counts(service) == (0, 0)

    run(made)


def test_what_had_begun_fails_and_says_so(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        first, second = FakeReplica(), FakeReplica()
        service = remote(first, second)
        first.finish.clear()
        submission = await service.submit(SHORT)
        await settled()
        first.lose()
        with pytest.raises(ReplicaLostError):
            await submission.result()
        assert not second.asked
        await settled()
        assert counts(service) == (0, 0)

    run(made)


def test_a_request_ends_only_so_many_replicas(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        replicas = [FakeReplica() for _ in range(4)]
        service = remote(*replicas)
        for replica in replicas[:3]:
            replica.lose()
        with pytest.raises(ReplicaLostError):
            await service.submit(SHORT)
        assert [len(replica.asked) for replica in replicas] == [1, 1, 1, 0]

    run(made)


@pytest.mark.parametrize("begins", [False, True])
def test_what_is_late_or_interrupted_is_cancelled(
    remote: Callable[..., RemoteService], begins: bool
) -> None:
    async def made() -> None:
        replica = FakeReplica()
        service = remote(replica)
        (replica.finish if begins else replica.go).clear()
        late = await service.submit(SHORT, deadline=0.01)
        with pytest.raises(DeadlineError, match=r"not made within 0\.01 s"):
            await late.result()
        interrupted = await service.submit(SHORT)
        assert interrupted.cancel(InterruptedRequestError("enough"))
        assert not interrupted.cancel(InterruptedRequestError("more than enough"))
        with pytest.raises(InterruptedRequestError, match=r"^enough"):
            await interrupted.result()
        leaving = asyncio.ensure_future((await service.submit(SHORT)).result())
        await settled()
        leaving.cancel()
        await settled()
        assert replica.cancelled == 3
        assert counts(service) == (0, 0)

    run(made)


def test_a_request_that_no_replica_takes_is_late(remote: Callable[..., RemoteService]) -> None:
    class Deaf(FakeReplica):
        async def _wait_for(self, what: asyncio.Event | None = None) -> None:
            await asyncio.Event().wait()

    async def made() -> None:
        service = remote(Deaf())
        with pytest.raises(DeadlineError):
            await service.submit(SHORT, deadline=0.01)

    run(made)


def test_what_a_replica_refuses_is_refused(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        replica = FakeReplica()
        service = remote(replica)
        with pytest.raises(KdrtError, match="no steps"):
            await service.submit(kdrt.Request(prompt="a", steps=0))
        with pytest.raises(LimitError):
            await service.submit(kdrt.Request(prompt="a", steps=1000))
        assert len(replica.asked) == 1, "what is beyond the limits needs no replica"

    run(made)


def test_the_queue_is_bounded_in_front_of_the_replicas(
    remote: Callable[..., RemoteService],
) -> None:
    async def made() -> None:
        replica = FakeReplica()
        service = remote(replica)
        replica.go.clear()
        for _ in range(SETTINGS.max_waiting):
            await service.submit(SHORT)
        with pytest.raises(QueueFullError):
            await service.submit(SHORT)
        replica.go.set()

    run(made)
    assert replica_settings(SETTINGS).max_waiting > 10**6


def test_without_replicas_it_is_not_ready(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        service = remote()
        assert not service.is_ready
        with pytest.raises(NotReadyError):
            await service.submit(SHORT)

    run(made)


def test_a_look_goes_to_another_replica(remote: Callable[..., RemoteService]) -> None:
    async def made() -> None:
        first, second = FakeReplica(), FakeReplica()
        service = remote(first, second)
        submission = await service.submit(SHORT, watch=True)
        steps = [step async for step in submission]
        assert [step.index for step in steps] == [0, 1]
        assert [step async for step in submission] == [], "each step is handed out once"
        assert (await submission.result()).images
        first.lose()
        (image,) = await asyncio.to_thread(steps[0].decode)
        assert image.size == (64, 64)

    run(made)


def test_looks_end_with_the_request(remote: Callable[..., RemoteService]) -> None:
    class Blind(FakeReplica):
        async def decode(self, model: str, denoised: Tensor) -> Tensor:
            await asyncio.Event().wait()
            raise AssertionError

    async def made() -> None:
        replica = Blind()
        replica.finish.clear()
        service = remote(replica)
        cancelled = await service.submit(SHORT, watch=True)
        step = await anext(aiter(cancelled))
        looking = asyncio.ensure_future(asyncio.to_thread(step.decode))
        await asyncio.sleep(0.01)
        cancelled.cancel(InterruptedRequestError("enough"))
        for look in (looking, asyncio.to_thread(step.decode)):
            with pytest.raises(CancelledError):
                await look
        replica.finish.set()
        late = await service.submit(SHORT, watch=True, deadline=0.1)
        step = await anext(aiter(late))
        assert (await late.result()).images
        with pytest.raises(DeadlineError):
            await asyncio.to_thread(step.decode)

    run(made)


def test_a_stream_goes_on_where_a_look_fails(
    remote: Callable[..., RemoteService],
    service: ImageService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Blind(ServiceReplica):
        async def decode(self, model: str, denoised: Tensor) -> Tensor:
            raise LoadFailedError("the model could not be loaded")

    def lost(step: object) -> str:
        raise LoadFailedError("the model could not be loaded")

    monkeypatch.setattr("kdrt.serve.native._preview", lost)
    client = client_of(create_app(remote(Blind(service))))
    body = {"prompt": "a", "steps": 3, "stream": True}
    events = events_of(client.post("/v1/generate", json=body).text)
    assert [name for name, _ in events] == ["accepted", "step", "step", "step", "result"]
    assert not any("preview" in data for _, data in events)
    answer = client.post("/v1/images/generations", json={**body, "partial_images": 1})
    assert [name for name, _ in events_of(answer.text)] == ["image_generation.completed"]


def test_a_drain_finishes_what_runs_and_cancels_the_rest(
    remote: Callable[..., RemoteService],
) -> None:
    async def made() -> None:
        runs, waits = FakeReplica(), FakeReplica()
        for replica, grace in ((runs, 60), (waits, 0)):
            service = remote(replica)
            replica.finish.clear()
            submission = await service.submit(SHORT)
            draining = asyncio.ensure_future(service.drain(grace))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDownError):
                await service.submit(SHORT)
            if replica is runs:
                replica.finish.set()
                assert (await submission.result()).images
            await draining
        with pytest.raises(ShuttingDownError, match="cancelled this request"):
            await submission.result()

    run(made)


@pytest.fixture(scope="module")
def clients(service: ImageService, demo_bundle: Path) -> tuple[TestClient, TestClient]:
    """The interfaces over a service of this process, and over the same service as a replica."""
    models = [ModelSettings(bundle=str(demo_bundle))]
    remote = RemoteService(models, SETTINGS, replicas_of(service))
    remote.load()
    return client_of(create_app(service)), client_of(create_app(remote))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": "a red circle", "seed": 7, "steps": 2}),
        ("/v1/generate", {"prompt": "a red circle", "seed": 7, "steps": 2, "sampler": "none"}),
        ("/v1/images/generations", {"prompt": "a red circle", "size": "auto", "n": 99}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "seed": 7, "steps": 2, "width": 64, "height": 64}),
    ],
)
def test_clients_see_no_difference(
    clients: tuple[TestClient, TestClient], path: str, body: dict[str, Any]
) -> None:
    here, there = (client.post(path, json=body) for client in clients)
    assert there.status_code == here.status_code
    images = [answer.json().get("images") for answer in (here, there)]
    assert images[0] == images[1]
    assert there.json().get("error") == here.json().get("error")


def test_a_model_is_ready_where_a_replica_takes_its_requests(
    clients: tuple[TestClient, TestClient],
) -> None:
    here, there = (client.get("/v2/models/demo/ready") for client in clients)
    assert here.json() == there.json() == {"name": "demo", "ready": True}
    assert here.status_code == there.status_code == 200


def test_streams_have_the_same_previews(clients: tuple[TestClient, TestClient]) -> None:
    native = {"prompt": "a red circle", "seed": 7, "steps": 2, "stream": True}
    openai = {**native, "steps": 3, "partial_images": 1, "size": "64x64"}
    for path, body, shown in (
        ("/v1/generate", native, "preview"),
        ("/v1/images/generations", openai, "b64_json"),
    ):
        here, there = (events_of(client.post(path, json=body).text) for client in clients)
        assert [name for name, _ in there] == [name for name, _ in here]
        looks = [
            [image_of(data[shown]).tobytes() for _, data in events if shown in data]
            for events in (here, there)
        ]
        assert len(looks[0]) == 2
        assert looks[0] == looks[1]
