"""How far the host may be ahead of a GPU."""

from __future__ import annotations

from collections import deque

import torch

_TICKS_AHEAD = 2
"""With that many enqueued the GPU never waits for the host; with many more, a request that comes
would wait for all of them."""


class Pace:
    """Keeps the host a few ticks ahead of the device. On a CPU, where a tick is done when it
    returns, nothing waits.

    Args:
        device: that ticks are enqueued on.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_on_gpu = device.type == "cuda"
        self._ahead: deque[torch.cuda.Event] = deque()

    def enqueued(self) -> None:
        """A tick more was enqueued on the current stream: wait until few are."""
        if not self._is_on_gpu:
            return
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        self._ahead.append(done)
        if len(self._ahead) > _TICKS_AHEAD:
            self._ahead.popleft().synchronize()
