"""What the thread of a batcher is told by others."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, NamedTuple

from kdrt.batching.order import Order
from kdrt.pipeline.result import Result


class Arrived(NamedTuple):
    """A request was submitted."""

    order: Order


class Cancelled(NamedTuple):
    """Nobody wants it any more."""

    order: Order


class Decoded(NamedTuple):
    """Its images are decoded, or could not be."""

    order: Order
    result: Future[Result[Any]]


class Close(NamedTuple):
    """There will be no more requests. Those that are there are made; or they end with a
    CancelledError that says ``cancel_with``."""

    cancel_with: str | None


Message = Arrived | Cancelled | Decoded | Close
