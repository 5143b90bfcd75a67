"""The GPU that engines run on, as far as TensorRT needs to know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Gpu:
    """One CUDA device.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        major, minor = torch.cuda.get_device_capability(device)
        self.capability = 10 * major + minor
        """The compute capability, 89 for 8.9."""

    def current_stream(self) -> int:
        """The handle of the stream that PyTorch enqueues on now."""
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def wait_for_stream(self) -> None:
        """Wait until the work on the current stream is done."""
        torch.cuda.current_stream(self.device).synchronize()

    def wait(self) -> None:
        """Wait until all work is done."""
        torch.cuda.synchronize(self.device)

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Enqueue on a new stream, after what was enqueued before and before what comes after. On
        the default stream TensorRT would synchronise more than it must."""
        self.wait()
        with torch.cuda.stream(torch.cuda.Stream(self.device)):  # type: ignore[no-untyped-call]
            yield
        self.wait()


def find_gpu() -> Gpu | None:
    """PyTorch's current CUDA device, or None if there is none."""
    if not torch.cuda.is_available():
        return None
    return Gpu(torch.device("cuda", torch.cuda.current_device()))
