"""Who is told what a batcher does, for metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kdrt.batching.handle import Handle

Stage = Literal["encode", "decode"]
"""``encode``: prompts and noise of a request; ``decode``: its pixels."""


class Observer:
    """Is told of everything and ignores it. Methods are called in the threads of a batcher, where
    everything waits for them: they must be quick, and must not raise."""

    def admitted(self, handle: Handle[Any], images: int) -> None:
        """So many images of a request are on their way from now on."""

    def ticked(self, images: int, rows: int, seconds: float) -> None:
        """So many images were taken one evaluation further, with a UNet run of so many rows. A
        request that does not share runs by itself, a step at a time.

        The time is the host's. A GPU may still be at work, but as few ticks are enqueued ahead, on
        average they take as long as it does.
        """

    def took(self, stage: Stage, seconds: float) -> None:
        """A stage of a request took so long by the host's clock."""

    @contextmanager
    def timing(self, stage: Stage) -> Iterator[None]:
        """Tell how long the block took, if it ends without an error."""
        started = time.perf_counter()
        yield
        self.took(stage, time.perf_counter() - started)
