"""What the front and a worker tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from prometheus_client.metrics_core import Metric
from torch import Tensor

from kdrt.serve.log import LogFormat
from kdrt.serve.replica import Ask, Event
from kdrt.serve.settings import ModelSettings, ServiceSettings

Look: TypeAlias = Literal["preview", "decode"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first message to a worker.

    Attributes:
        name: of the worker, for its log.
        models, settings: of its service.
        needs_gpu: whether it was given a GPU, and must not do without.
        log: of its lines on standard error.
    """

    name: str
    models: tuple[ModelSettings, ...]
    settings: ServiceSettings
    needs_gpu: bool
    log: LogFormat


@dataclass(frozen=True)
class Run:
    """Make this; what becomes of it is told under the number."""

    number: int
    ask: Ask


@dataclass(frozen=True)
class Cancel:
    """Nobody waits any more for what has this number."""

    number: int


@dataclass(frozen=True)
class LookAt:
    """Make an image of latents ``[1, C, h, w]``; see `kdrt.serve.replica.Replica`."""

    number: int
    look: Look
    model: str
    denoised: Tensor


@dataclass(frozen=True)
class Ready:
    """The worker is loaded and warm."""


@dataclass(frozen=True)
class Refused:
    """The worker cannot be loaded, and ends."""

    error: Exception


@dataclass(frozen=True)
class Told:
    """An event of a request."""

    number: int
    event: Event


@dataclass(frozen=True)
class Looked:
    """What a look has come to: images, pixels or an error."""

    number: int
    seen: Any


@dataclass(frozen=True)
class Figures:
    """The worker's metrics, as they are now."""

    families: tuple[Metric, ...]
