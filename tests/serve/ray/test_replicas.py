"""What becomes of a request whose replica ends: it is made again, unless its steps were seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from PIL import Image

from kdrt.errors import KdrtError, ShapeError
from kdrt.pipeline.result import Result
from kdrt.serve.errors import ReplicaLostError
from kdrt.serve.replica import Accepted, Ask, Begun, Done, Event, Stepped

pytest.importorskip("ray", reason="ray is an extra")

from ray.exceptions import ActorUnavailableError, RayTaskError

from kdrt.serve.ray.replicas import RayReplicas

LOST = ActorUnavailableError("gone", b"1" * 16)
DONE = Done(Result([Image.new("RGB", (8, 8))], [7]))
STEP = Stepped(0, 0, 1.0, 0.5, torch.zeros(1), torch.zeros(1))


class Handle:
    """A deployment, of which each call answers with the next of some lists."""

    def __init__(self, *answers: list[Event | Exception]) -> None:
        self.answers = list(answers)
        self.chosen: list[str] = []
        self.cancelled = 0
        self.run = self

    def options(self, *, stream: bool, multiplexed_model_id: str) -> Handle:
        assert stream
        self.chosen.append(multiplexed_model_id)
        return self

    def remote(self, ask: Ask) -> Response:
        return Response(self, self.answers.pop(0))


class Response:
    def __init__(self, handle: Handle, events: list[Event | Exception]) -> None:
        self._handle, self._events = handle, events

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self._handle.cancelled += 1


def told(handle: Handle, *, by_model: bool = False) -> list[Event]:
    """The events that the front hears of; the last may be an exception."""
    asked = Ask(request={"prompt": "x"}, model="demo", images=3, watch=True, deadline=9.0)
    heard: list[Any] = []

    async def main() -> None:
        async for event in RayReplicas(handle, by_model=by_model).run(asked):
            heard.append(event)

    try:
        asyncio.run(main())
    except Exception as error:
        heard.append(type(error))
    assert handle.cancelled == len(handle.chosen)
    return heard


def test_what_had_begun_is_made_again_and_begins_once() -> None:
    handle = Handle([Accepted(4), Begun(2), LOST], [Accepted(4), Begun(1), Begun(2), DONE])
    assert told(handle) == [Accepted(4), Begun(2), Accepted(4), Begun(1), DONE]


def test_what_has_not_begun_is_the_fronts_to_send_again() -> None:
    assert told(Handle([Accepted(4), LOST])) == [Accepted(4), ReplicaLostError]


def test_steps_that_were_seen_are_not_taken_again() -> None:
    assert told(Handle([Begun(1), STEP, LOST])) == [Begun(1), STEP, ReplicaLostError]


def test_a_request_that_ends_replicas_ends() -> None:
    handle = Handle(*[[Begun(1), LOST] for _ in range(9)])
    assert told(handle) == [Begun(1), ReplicaLostError]
    assert len(handle.chosen) == 3


@pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (ValueError("a bug"), KdrtError, "what makes the images has failed"),
        (ShapeError("too large"), ShapeError, "too large"),
    ],
)
def test_a_fault_of_the_replica_is_no_loss(cause: Exception, kind: type, said: str) -> None:
    fault = RayTaskError("run", "Traceback of /a/private/path", cause).as_instanceof_cause()
    heard: list[Any] = told(Handle([fault]))
    assert heard == [kind]

    class Failing:
        """A handle whose previews fail."""

        preview = property(lambda self: self)

        def options(self, **_: object) -> Failing:
            return self

        async def remote(self, *_: object) -> None:
            raise fault

    with pytest.raises(kind) as caught:
        asyncio.run(RayReplicas(Failing(), by_model=False).preview("demo", torch.zeros(1)))
    assert str(caught.value).startswith(said)
    assert caught.value.__cause__ is fault


def test_a_replica_is_chosen_by_model_where_it_holds_only_some() -> None:
    handle = Handle([DONE], [DONE])
    told(handle)
    assert handle.chosen == [""]
    handle = Handle([DONE])
    told(handle, by_model=True)
    assert handle.chosen == ["demo"]
