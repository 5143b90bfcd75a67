"""Which worker makes a request, and what is told of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import torch

import kdrt
from kdrt.errors import EngineUnavailableError, KdrtError
from kdrt.serve.errors import ReplicaLostError, ShuttingDownError
from kdrt.serve.replica import Ask
from kdrt.serve.workers.pool import WorkerPool
from kdrt.serve.workers.specs import WorkerSpec
from tests.support.serving import until
from tests.support.workers import FakeWorker, spec_of


def ask(images: int = 1) -> Ask:
    return Ask(request=kdrt.Request(prompt="a"), model="demo", images=images, deadline=60)


@pytest.fixture
def workers() -> dict[str, FakeWorker]:
    """Those that were made, by name; the newest of each."""
    return {}


@pytest.fixture
def pool(workers: dict[str, FakeWorker]) -> Iterator[WorkerPool]:
    def make(spec: WorkerSpec) -> FakeWorker:
        workers[spec.name] = made = FakeWorker(spec)
        return made

    made = WorkerPool([spec_of(str(number)) for number in range(3)], make)
    made.start(lambda error: None)
    until(lambda: len(made.workers) == 3)
    yield made
    made.close()


def test_the_one_with_the_fewest_images_is_asked(
    pool: WorkerPool, workers: dict[str, FakeWorker]
) -> None:
    async def ask_all() -> list[int]:
        asked = []
        for images in (3, 1, 1, 1, 1):
            events = pool.run(ask(images))
            await anext(events)  # it goes on until it is asked for more
            asked.append(events)
        counts = sorted(worker.outstanding for worker in workers.values())
        for events in asked:
            await events.aclose()
        return counts

    assert asyncio.run(ask_all()) == [2, 2, 3]
    assert all(worker.outstanding == 0 for worker in workers.values())


def test_idle_ones_take_turns(pool: WorkerPool, workers: dict[str, FakeWorker]) -> None:
    async def ask_in_turn() -> None:
        for _ in range(6):
            async with aclosing(pool.run(ask())) as events:
                assert len([event async for event in events]) == 3

    asyncio.run(ask_in_turn())
    assert [len(worker.seen) for worker in workers.values()] == [2, 2, 2]


def test_looks_go_to_a_worker_that_has_the_model(
    pool: WorkerPool, workers: dict[str, FakeWorker]
) -> None:
    async def looks() -> list[Any]:
        latents = torch.zeros(1, 4, 8, 8)
        async with aclosing(pool.run(ask())) as events:
            await anext(events)
            await anext(events)  # its image has begun
            looks = [await pool.preview("demo", latents), await pool.decode("demo", latents)]
        return [*looks, await pool.decode("demo", latents)]

    seen = asyncio.run(looks())
    (maker,) = (name for name, worker in workers.items() if worker.seen)
    assert seen == [(maker, "preview"), (maker, "decode"), (maker, "decode")]


def test_looks_wait_for_no_worker(pool: WorkerPool, workers: dict[str, FakeWorker]) -> None:
    for worker in workers.values():
        worker.is_ready = False
    with pytest.raises(ReplicaLostError, match="no worker is ready"):
        asyncio.run(pool.decode("demo", torch.zeros(1, 4, 8, 8)))


def test_while_none_is_ready_requests_wait(
    pool: WorkerPool, workers: dict[str, FakeWorker]
) -> None:
    for worker in workers.values():
        worker.is_ready = False
    assert not pool.is_ready

    async def wait() -> int:
        running = asyncio.ensure_future(anext(pool.run(ask())))
        await asyncio.sleep(0.01)
        assert not running.done()
        workers["1"].is_ready = True
        await running
        return len(workers["1"].seen)

    assert asyncio.run(wait()) == 1


def test_nobody_waits_for_a_pool_that_is_closed(pool: WorkerPool) -> None:
    pool.close()
    pool.close()
    assert pool.workers == []
    with pytest.raises(ShuttingDownError):
        asyncio.run(anext(pool.run(ask())))


def started(make: Callable[[WorkerSpec], FakeWorker]) -> list[KdrtError]:
    """What a pool is told to have failed with; its start raises that too."""
    failures: list[KdrtError] = []
    pool = WorkerPool([spec_of("0")], make)
    try:
        with pytest.raises(KdrtError) as error:
            pool.start(failures.append)
    finally:
        pool.close()
    assert failures == [error.value]
    return failures


def test_a_start_that_fails_says_why() -> None:
    refused = EngineUnavailableError("there is no GPU 7")
    (failure,) = started(lambda spec: FakeWorker(spec, comes_up=False, refused=refused))
    assert str(failure) == "worker 0 cannot be started: there is no GPU 7"
