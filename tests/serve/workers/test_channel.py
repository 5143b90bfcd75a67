"""Messages over pipes: whole, in order, and an end that is noticed."""

from __future__ import annotations

import os
import pickle
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdrt.serve.workers.channel import Channel

ENDED = object()


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends."""
    pipes = [
        [os.fdopen(file, mode) for file, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
        for _ in range(2)
    ]
    (reading, writing), (other_reading, other_writing) = pipes
    ends = Channel(reading, other_writing), Channel(other_reading, writing)
    yield ends
    for end in ends:
        end.close(10)
    for file in (*pipes[0], *pipes[1]):
        file.close()


def heard_by(end: Channel) -> queue.SimpleQueue[Any]:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end.listen(heard.put, lambda: heard.put(ENDED))
    return heard


def test_messages_come_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    # More than a pipe holds, before anybody reads.
    messages = [number * bytes([number]) * 10_000 for number in range(50)]
    for message in messages:
        one.send(message)
    heard = heard_by(other)
    assert [heard.get(timeout=10) for _ in messages] == messages
    other.send("back")
    assert one.receive() == "back"


def test_the_end_comes_after_what_was_sent(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    heard = heard_by(other)
    one.send("last")
    one.close(10)
    assert [heard.get(timeout=10), heard.get(timeout=10)] == ["last", ENDED]
    one.send("too late")


def test_half_a_message_is_an_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(pickle.dumps(list(range(1000)))[:-10])
    with os.fdopen(reading, "rb") as file, Path(os.devnull).open("wb") as nowhere:
        end = Channel(file, nowhere)
        with pytest.raises(EOFError):
            end.receive()
        end.close(10)


def test_to_a_process_that_has_ended_nothing_is_sent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Path(os.devnull).open("rb") as nothing:
        end = Channel(nothing, os.fdopen(writing, "wb"))
        end.send("lost")
        end.close(10)


def test_what_cannot_be_pickled_is_told_to_whoever_sends_it(
    ends: tuple[Channel, Channel],
) -> None:
    with pytest.raises(Exception, match="pickle"):
        ends[0].send(lambda: None)
