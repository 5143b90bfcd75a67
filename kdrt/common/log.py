"""What kdrt logs, under the logger ``kdrt``: what was loaded and why, what was captured in CUDA
graphs, how long each stage of an image took.

    logging.basicConfig(level=logging.INFO)

Unless logging is configured, only warnings are printed. On CUDA, work is enqueued and runs later:
to time a stage, kdrt waits for the GPU at its end, and only where the message is wanted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Step = TypeVar("Step")


def print_log(verbosity: int) -> None:
    """Print kdrt's messages on standard error: 1 those of level INFO, 2 also of DEBUG."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(name)s: %(message)s"))
    logger = logging.getLogger("kdrt")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


@contextmanager
def timed(
    logger: logging.Logger, stage: str, device: torch.device, level: int = logging.INFO
) -> Iterator[None]:
    """Log how long the block took, if it ends without an error.

    Args:
        logger: of the module that the stage is in.
        stage: what was done, in the past tense.
        device: where the work runs.
        level: of the message.
    """
    if not logger.isEnabledFor(level):
        yield
        return
    started = _now(device)
    yield
    logger.log(level, "%s in %.3f s", stage, _now(device) - started)


def timed_steps(
    logger: logging.Logger, stage: str, steps: Iterator[Step], device: torch.device
) -> Iterator[Step]:
    """The same steps; after the last, log how long they took together, at level INFO. The time
    that the caller spends between steps does not count."""
    return (
        _timed_steps(logger, stage, steps, device) if logger.isEnabledFor(logging.INFO) else steps
    )


def _timed_steps(
    logger: logging.Logger, stage: str, steps: Iterator[Step], device: torch.device
) -> Iterator[Step]:
    seconds, started = 0.0, _now(device)
    for step in steps:
        seconds += _now(device) - started
        yield step
        started = _now(device)
    logger.info("%s in %.3f s", stage, seconds + _now(device) - started)


def _now(device: torch.device) -> float:
    """The time in seconds, once the device has done what was enqueued on the current stream."""
    if device.type == "cuda":
        import torch

        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()
