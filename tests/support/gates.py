"""Holding a batcher still, so that what is asked of it meanwhile comes at a known tick."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kdrt import Batcher
from kdrt.batching.handle import Handle, ImageStep
from kdrt.pipeline.result import Result
from tests.support.requests import request_of

PATIENCE = 120.0
"""Seconds after which a test says that something hangs."""


def made(handle: Handle[Any]) -> Result[Any]:
    """The result of a request, which ends in the time of a test."""
    return handle.result(timeout=PATIENCE)


class Gate:
    """A callback that stops at each step until it is opened."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, step: ImageStep) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE)

    def wait(self) -> None:
        """Until a step is reached."""
        assert self._reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


@contextmanager
def held(batcher: Batcher, **fields: Any) -> Iterator[Handle[Any]]:
    """Within the block the batcher stands still after the first step of a request of its own,
    whose handle this is."""
    gate = Gate()
    request = request_of({"prompt": "a", "seed": 0, "steps": 2, **fields})
    handle = batcher.submit(request, callback=gate)
    gate.wait()
    try:
        yield handle
    finally:
        gate.open()


def ends_with(handle: Handle[Any], kind: type[BaseException], match: str | None = None) -> None:
    """That a request ends with this error."""
    with pytest.raises(kind, match=match):
        made(handle)


def at_each_step(*actions: Callable[[], object]) -> Callable[[ImageStep], None]:
    """A callback that does the first at the first step, and so on."""
    left = iter(actions)

    def callback(step: ImageStep) -> None:
        action = next(left, None)
        if action is not None:
            action()

    return callback
