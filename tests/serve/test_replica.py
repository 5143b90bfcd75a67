"""A replica: the events of a request, the same of a real one and of the one that tests use."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from PIL import Image

import kdrt
from kdrt.errors import CancelledError, EngineRejectedError, InvalidRequestError, KdrtError
from kdrt.serve import errors
from kdrt.serve.errors import LimitError, QueueFullError
from kdrt.serve.replica import (
    Accepted,
    Ask,
    Begun,
    Done,
    Event,
    Failed,
    Replica,
    ServiceReplica,
    Stepped,
    portable_error,
)
from kdrt.serve.service import ImageService
from tests.support.replicas import FakeReplica
from tests.support.serving import run, until, waiting_model


def ask(watch: bool = False, **fields: Any) -> Ask:
    request = cast(kdrt.Request, {"prompt": "a red circle", "seed": 7, "steps": 2, **fields})
    images = fields.get("images_per_prompt", 1)
    return Ask(request=request, model="demo", images=images, watch=watch, deadline=60)


@pytest.fixture(params=["service", "fake"])
def replica(request: pytest.FixtureRequest, service: ImageService) -> Replica:
    return ServiceReplica(service) if request.param == "service" else FakeReplica()


async def events_of(replica: Replica, asked: Ask) -> list[Event]:
    """All of them, as they are after a way between two processes."""
    return [pickle.loads(pickle.dumps(event)) async for event in replica.run(asked)]


def test_events_come_in_order(replica: Replica) -> None:
    events = run(lambda: events_of(replica, ask(images_per_prompt=2)))
    assert isinstance(events[0], Accepted)
    assert events[0].steps == 2
    assert sum(event.images for event in events if isinstance(event, Begun)) == 2
    assert isinstance(events[-1], Done)
    assert len(events[-1].result.images) == 2
    assert not any(isinstance(event, Stepped) for event in events)


def test_steps_come_where_they_are_watched(replica: Replica) -> None:
    events = run(lambda: events_of(replica, ask(watch=True)))
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [(step.image, step.index) for step in steps] == [(0, 0), (0, 1)]
    assert steps[0].denoised.shape == steps[0].latents.shape == (1, 4, 16, 16)
    kinds = [type(event) for event in events]
    assert kinds == [Accepted, Begun, Stepped, Stepped, Done]


def test_what_is_wrong_is_an_event(replica: Replica) -> None:
    (event,) = run(lambda: events_of(replica, ask(steps=0)))
    assert isinstance(event, Failed)
    assert isinstance(event.error, KdrtError)


def test_steps_can_be_looked_at(replica: Replica) -> None:
    async def looks() -> tuple[list[Image.Image], Any]:
        events = await events_of(replica, ask(watch=True))
        step = next(event for event in events if isinstance(event, Stepped))
        return (
            await replica.preview("demo", step.denoised),
            await replica.decode("demo", step.denoised),
        )

    previews, pixels = run(looks)
    assert previews[0].size == (16, 16)
    assert pixels.shape == (1, 3, 64, 64)


def test_what_is_not_waited_for_is_cancelled(service: ImageService) -> None:
    async def leave() -> None:
        with waiting_model(service):
            async with aclosing(ServiceReplica(service).run(ask(steps=60))) as events:
                assert isinstance(await anext(events), Accepted)
                assert service.model().queue.waiting == 1
        await asyncio.to_thread(until, lambda: service.model().queue.waiting == 0)

    run(leave)
    assert service.model().queue.running == 0


def test_a_model_stays_while_a_step_of_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, may_end, was_read = threading.Event(), threading.Event(), threading.Event()

    class Watched:
        steps = 1

        async def __aiter__(self) -> AsyncIterator[None]:
            yield None

        async def result(self) -> None:
            raise CancelledError("it was cancelled")

        def cancel(self, reason: KdrtError) -> None:
            pass

        def was_read(self) -> None:
            was_read.set()

    class Service:
        async def submit(self, *given: Any, **more: Any) -> Watched:
            return Watched()

    def copy(step: None) -> Begun:
        copies.set()
        may_end.wait(30)
        return Begun(1)

    async def leave() -> None:
        replica = ServiceReplica(cast(ImageService, Service()))
        async with aclosing(replica.run(ask(watch=True))) as events:
            await anext(events)
            await asyncio.to_thread(copies.wait, 30)
        await asyncio.sleep(0)
        assert not was_read.is_set()
        may_end.set()
        assert await asyncio.to_thread(was_read.wait, 30)

    monkeypatch.setattr("kdrt.serve.replica._stepped", copy)
    run(leave)


@pytest.mark.filterwarnings("ignore::kdrt.TruncationWarning")
def test_a_result_is_the_services_own_after_the_way(service: ImageService) -> None:
    async def both() -> tuple[Any, Any]:
        asked = ask(prompt="a red circle, " * 30)
        here = await (await service.submit(asked.request)).result()
        (*_, there) = await events_of(ServiceReplica(service), asked)
        assert isinstance(there, Done)
        return here, there.result

    here, there = run(both)
    assert there.images[0].tobytes() == here.images[0].tobytes()
    assert there.infotexts == here.infotexts
    assert there.truncations
    assert (there.seeds, there.truncations, there.nsfw) == (here.seeds, here.truncations, here.nsfw)


def test_images_to_begin_with_come_along(service: ImageService) -> None:
    start = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    (*_, done) = run(lambda: events_of(ServiceReplica(service), ask(image=start, strength=0.5)))
    assert isinstance(done, Done)
    asked = pickle.loads(pickle.dumps(ask(image=start)))
    assert asked.request["image"].tobytes() == start.tobytes()


KINDS = [
    kind
    for kind in {**vars(kdrt.errors), **vars(errors)}.values()
    if isinstance(kind, type) and issubclass(kind, KdrtError) and kind is not EngineRejectedError
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_arrive_as_what_they_are(kind: type[Exception]) -> None:
    error = kind("too many", 3) if kind is QueueFullError else kind("it is wrong")
    portable = portable_error(error)
    arrived = pickle.loads(pickle.dumps(portable))
    assert type(arrived) is kind
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


def test_an_error_that_cannot_travel_keeps_its_text() -> None:
    error = EngineRejectedError("the engine is of another GPU", "wrong GPU")
    arrived = pickle.loads(pickle.dumps(portable_error(error)))
    assert isinstance(arrived, KdrtError)
    assert str(arrived) == str(error)


def test_fields_of_errors_arrive() -> None:
    arrived = pickle.loads(pickle.dumps(portable_error(LimitError("steps is 61", "steps"))))
    assert (str(arrived), arrived.field) == ("steps is 61", "steps")


def test_other_errors_keep_their_text_and_where_they_come_from() -> None:
    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__(lambda: None)

    try:
        raise Odd
    except Odd as error:
        arrived = pickle.loads(pickle.dumps(portable_error(error)))
    assert not isinstance(arrived, InvalidRequestError)
    assert errors.fault_of(arrived).kind == "internal_error"
    assert "in test_other_errors_keep" in arrived.__notes__[0]
