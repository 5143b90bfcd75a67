"""Answers and events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from kdrt.serve.errors import DeadlineError, QueueFullError, fault_of
from kdrt.serve.responses import error_body, event, json_response, with_heartbeats


def test_json_can_quote_anything() -> None:
    text = "half a character \udcff, and é"
    assert json.loads(bytes(json_response({"text": text}).body)) == {"text": text}


def test_an_event_is_one_line_of_data() -> None:
    assert event({"a": "b\n\nc"}, "step") == b'event: step\ndata: {"a":"b\\n\\nc"}\n\n'
    assert event({}) == b"data: {}\n\n"


def test_the_type_of_an_error_is_that_of_its_status() -> None:
    kinds = [fault_of(each) for each in (QueueFullError("full", 1), DeadlineError("late"))]
    types = [error_body(fault)["error"]["type"] for fault in kinds]
    assert types == ["rate_limit_error", "server_error"]


def test_where_nothing_comes_for_long_the_connection_is_kept() -> None:
    async def main() -> list[bytes]:
        more = asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"first"
            await more.wait()
            yield b"second"

        seen = []
        async for each in with_heartbeats(events(), seconds=0.001):
            seen.append(each)
            if seen.count(b": waiting\n\n") == 3:
                more.set()
        return seen

    first, *waiting, second = asyncio.run(main())
    assert (first, second) == (b"first", b"second")
    assert len(waiting) >= 3
    assert {*waiting} == {b": waiting\n\n"}


def test_an_error_of_events_comes_through() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        raise DeadlineError("late")

    async def main() -> None:
        async for _ in with_heartbeats(events()):
            pass

    with pytest.raises(DeadlineError):
        asyncio.run(main())
