"""Two real worker processes: the same images, and what becomes of requests when one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

import kdrt
from kdrt.errors import InvalidRequestError
from kdrt.serve.errors import InterruptedRequestError, ReplicaLostError
from kdrt.serve.remote import RemoteService
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.workers.figures import PoolMetrics
from kdrt.serve.workers.messages import Cancel, LookAt
from kdrt.serve.workers.pool import WorkerPool
from kdrt.serve.workers.specs import worker_specs
from kdrt.serve.workers.worker import Worker
from tests.support.serving import until
from tests.support.workers import spec_of

SHORT = kdrt.Request(prompt="a red circle", seed=7, steps=2)
LONG = kdrt.Request(prompt="a red circle", seed=7, steps=150, images_per_prompt=3)

# One image after the other, so that of two requests the second has not begun.
SETTINGS = ServiceSettings(max_rows=2, max_images=1, warmup=(), threads=1)


@pytest.fixture(scope="module")
def pool(demo_bundle: Path) -> WorkerPool:
    return WorkerPool(worker_specs([ModelSettings(bundle=str(demo_bundle))], SETTINGS, workers=2))


@pytest.fixture(scope="module")
def workers(demo_bundle: Path, pool: WorkerPool) -> Iterator[RemoteService]:
    models = [ModelSettings(bundle=str(demo_bundle))]
    service = RemoteService(models, SETTINGS, pool, PoolMetrics(pool))
    service.load()
    are_ready(pool)
    yield service
    pids = [worker.pid for worker in pool.workers]
    service.close()
    assert not any(is_running(pid) for pid in pids)


def are_ready(pool: WorkerPool) -> None:
    until(lambda: sum(worker.is_ready for worker in pool.workers) == 2, 120)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def make(service: ImageService, request: kdrt.Request = SHORT) -> Any:
    return await (await service.submit(request)).result()


def test_images_are_those_of_one_process(workers: RemoteService, service: ImageService) -> None:
    async def both() -> None:
        # Idle workers take turns.
        first, second = await make(workers), await make(workers)
        here = await make(service)
        for there in (first, second):
            assert there.images[0].tobytes() == here.images[0].tobytes()
            assert there.infotexts == here.infotexts

    asyncio.run(both())


def test_steps_can_be_looked_at(workers: RemoteService) -> None:
    async def watch() -> list[tuple[int, bytes]]:
        submission = await workers.submit(SHORT, watch=True)
        seen = []
        async for step in submission:
            (image,) = await asyncio.to_thread(step.decode)
            seen.append((step.index, image.tobytes()))
        result = await submission.result()
        assert seen[-1][1] == result.images[0].tobytes()
        return seen

    assert [index for index, _ in asyncio.run(watch())] == [0, 1]


def test_what_is_refused_or_interrupted_arrives_as_that(
    workers: RemoteService, pool: WorkerPool
) -> None:
    async def refuse() -> None:
        with pytest.raises(InvalidRequestError, match="unknown sampler 'nonsense'"):
            await workers.submit(kdrt.Request(prompt="a", sampler="nonsense"))
        submission = await workers.submit(LONG, watch=True)
        await anext(aiter(submission))
        submission.cancel(InterruptedRequestError("enough"))
        with pytest.raises(InterruptedRequestError):
            await submission.result()
        assert sum(worker.outstanding for worker in pool.workers) == 0

    asyncio.run(refuse())


def test_a_worker_that_is_killed_loses_only_what_it_had_begun(
    workers: RemoteService, pool: WorkerPool, service: ImageService
) -> None:
    async def kill() -> None:
        running = [await workers.submit(LONG, watch=True) for _ in range(2)]
        waiting = [await workers.submit(SHORT) for _ in range(4)]
        await asyncio.gather(*(anext(aiter(each)) for each in running))
        # Each has begun a long request, of three images, and has two short ones waiting.
        assert all(worker.outstanding > 2 for worker in pool.workers)
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        made = await asyncio.gather(*(each.result() for each in running), return_exceptions=True)
        assert {type(each) for each in made} == {ReplicaLostError, kdrt.Result}
        (lost,) = (each for each in made if isinstance(each, ReplicaLostError))
        assert "was ended by SIGKILL, as when memory runs out" in str(lost)
        here = await make(service)
        for each in waiting:
            assert (await each.result()).images[0].tobytes() == here.images[0].tobytes()

    asyncio.run(kill())
    are_ready(pool)
    assert sorted(pool.restarts.values()) == [0, 1]
    assert workers.is_ready

    async def again() -> None:
        await asyncio.gather(*(make(workers) for _ in range(4)))

    asyncio.run(again())


def test_what_workers_do_is_counted(workers: RemoteService) -> None:
    def ticks() -> dict[str, float]:
        families = text_string_to_metric_families(workers.metrics.text().decode())
        return {
            sample.labels["worker"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "kdrt_tick_images_count"
        }

    until(lambda: len(ticks()) == 2 and all(ticks().values()))


def test_a_look_that_nobody_waits_for_is_cancelled(
    workers: RemoteService, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = cast(Any, pool.workers[0])
    sent: list[object] = []
    monkeypatch.setattr(worker._channel, "send", sent.append)

    async def leave() -> None:
        looking = asyncio.ensure_future(worker.look("decode", "demo", torch.zeros(1, 4, 8, 8)))
        await asyncio.sleep(0)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking

    asyncio.run(leave())
    look, cancel = sent
    assert isinstance(look, LookAt)
    assert cancel == Cancel(look.number)


def test_a_worker_whose_front_is_gone_ends_by_itself(
    workers: RemoteService, pool: WorkerPool
) -> None:
    worker = pool.workers[0]
    worker.end(60)  # which closes its pipe, as the end of this process would
    assert worker.how_it_ended() == "ended with exit code 0"


def test_a_worker_that_cannot_be_told_what_to_do_is_not_left_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    spec = spec_of("0")
    odd = replace(spec, start=replace(spec.start, name=lambda: None))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="pickle"):
        Worker(odd)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
