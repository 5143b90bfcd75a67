"""A worker in its own process: what it answers where a look goes wrong."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from kdrt.serve.metrics import Metrics
from kdrt.serve.service import ImageService
from kdrt.serve.workers.channel import Channel
from kdrt.serve.workers.messages import Cancel, LookAt, Looked
from kdrt.serve.workers.process import _Worker


class Sent:
    """In place of a channel: what was sent of looks."""

    def __init__(self) -> None:
        self.looks: asyncio.Queue[Looked] = asyncio.Queue()

    def send(self, message: object) -> None:
        pickle.dumps(message)
        if isinstance(message, Looked):
            self.looks.put_nowait(message)


class Odd:
    """In place of a replica: it sees what cannot be pickled, or nothing until it is cancelled."""

    def __init__(self, service: object) -> None:
        self.cancelled = asyncio.Event()

    async def preview(self, model: str, denoised: Tensor) -> Any:
        return lambda: None

    async def decode(self, model: str, denoised: Tensor) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


def test_a_look_is_answered_or_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdrt.serve.workers.process.ServiceReplica", Odd)

    async def look() -> Looked:
        channel, inbox = Sent(), asyncio.Queue[Any]()
        service = SimpleNamespace(metrics=Metrics())
        worker = _Worker(cast(ImageService, service), cast(Channel, channel))
        serving = asyncio.ensure_future(worker.serve(inbox))
        async with asyncio.timeout(30):
            inbox.put_nowait(LookAt(1, "preview", "demo", torch.zeros(1)))
            answer = await channel.looks.get()
            inbox.put_nowait(LookAt(2, "decode", "demo", torch.zeros(1)))
            await asyncio.sleep(0.01)
            inbox.put_nowait(Cancel(2))
            await cast(Any, worker)._replica.cancelled.wait()
        serving.cancel()
        return answer

    answer = asyncio.run(look())
    assert answer.number == 1
    assert isinstance(answer.seen, Exception)
    assert "pickle" in str(answer.seen)
