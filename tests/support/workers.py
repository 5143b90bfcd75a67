"""Workers without a process, for those who keep them and choose among them."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from typing import Any

from prometheus_client.metrics_core import Metric
from torch import Tensor

from kdrt.errors import KdrtError
from kdrt.serve.log import LogFormat
from kdrt.serve.replica import Accepted, Ask, Begun, Done, Event
from kdrt.serve.settings import ServiceSettings
from kdrt.serve.workers.messages import Look, Start
from kdrt.serve.workers.specs import WorkerSpec


def spec_of(name: str, log: LogFormat = "text") -> WorkerSpec:
    """How a worker is started that never is."""
    start = Start(name=name, models=(), settings=ServiceSettings(), needs_gpu=False, log=log)
    return WorkerSpec(start)


class FakeWorker:
    """A worker that does what it is told.

    Args:
        spec: which one.
        comes_up: whether it is ready at once; otherwise it has ended.
        refused: what it says if it does not come up.
    """

    pid = 123

    def __init__(
        self, spec: WorkerSpec, *, comes_up: bool = True, refused: KdrtError | None = None
    ) -> None:
        self.name = spec.name
        self.outstanding = 0
        self.refused: Exception | None = refused
        self.figures: tuple[Metric, ...] = ()
        self.is_ready = comes_up
        self.seen: list[Ask] = []
        self._over = threading.Event()
        if not comes_up:
            self._over.set()

    def wait_ready(self) -> bool:
        """See `kdrt.serve.workers.worker.Worker`."""
        return self.is_ready

    def wait_ended(self) -> None:
        """See `kdrt.serve.workers.worker.Worker`."""
        self._over.wait()

    def how_it_ended(self) -> str:
        """See `kdrt.serve.workers.worker.Worker`."""
        return "was ended"

    def end(self, patience: float) -> None:
        """End it, as a crash does too."""
        self.is_ready = False
        self._over.set()

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """Accept, and be done when asked for more."""
        self.seen.append(ask)
        self.outstanding += ask.images
        try:
            yield Accepted(1)
            yield Begun(ask.images)
            yield Done(None)  # type: ignore[arg-type]
        finally:
            self.outstanding -= ask.images

    async def look(self, look: Look, model: str, denoised: Tensor) -> Any:
        """Say who looked."""
        return self.name, look
