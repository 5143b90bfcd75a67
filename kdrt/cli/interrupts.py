"""Ctrl-C and SIGTERM where a thread is ready for them.

Python raises them anywhere, also between taking a result out of a queue and keeping it. Here they
wait in the queue instead, behind the results that came before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Interrupt:
    """A signal that has arrived.

    Attributes:
        number: which one.
        handler: what answers it elsewhere.
    """

    number: int
    handler: Callable[[int, FrameType | None], Any]

    def answer(self) -> None:
        """Do what would have been done when it arrived: raise KeyboardInterrupt or SystemExit."""
        self.handler(self.number, None)


@contextmanager
def interrupts_told(put: Callable[[Interrupt], object]) -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM are put, in place of being raised: each once, so that
    whoever presses Ctrl-C again is answered at once. In other threads than the main one, which no
    signal reaches, this does nothing.

    Args:
        put: may be called between any two operations of the main thread, as SimpleQueue's may.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: each for number, each in found.items() if callable(each)}

    def tell(number: int, _: FrameType | None) -> None:
        signal.signal(number, handlers[number])
        put(Interrupt(number, handlers[number]))

    for number in handlers:
        signal.signal(number, tell)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
