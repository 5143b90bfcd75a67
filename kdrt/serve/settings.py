"""What an operator chooses. Clients choose nothing of this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdrt.common.validation import check_finite, check_int
from kdrt.denoise.graph_level import CudaGraphLevel
from kdrt.errors import InvalidRequestError
from kdrt.serve.auth import Keys, is_loopback
from kdrt.serve.limits import RequestLimits

MAX_SECONDS = 86_400.0
RELOAD_SECONDS = 2.0
"""From one look at the files of the bundles to the next, where they are looked at."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A bundle to serve, under the name it has itself.

    Attributes:
        bundle: its name or folder.
        loras: files by the name that clients ask for them by.
    """

    bundle: str
    loras: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How images are made.

    Attributes:
        limits: of a request.
        max_waiting: where so many images of a model wait, further requests are refused.
        deadline: seconds that a request may take, waiting included.
        warmup: (height, width) in pixels that are made once before the service is ready; None is
            the default size of each model, empty is no warm-up.
        max_rows, max_images: see `kdrt.Batcher`; None leaves them to it.
        engine, threads, cuda_graph, fallback: see `kdrt.load`.
        memory: bytes that all loaded models may take together; None is no limit.
        reload: seconds between two looks at whether bundles have changed; None is not to look.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    limits: RequestLimits = field(default_factory=RequestLimits)
    max_waiting: int = 64
    deadline: float = 300.0
    warmup: tuple[tuple[int, int], ...] | None = None
    max_rows: int | None = None
    max_images: int | None = None
    engine: str | None = None
    threads: int | None = None
    cuda_graph: CudaGraphLevel | None = None
    fallback: str | None = None
    memory: int | None = None
    reload: float | None = None

    def __post_init__(self) -> None:
        check_int("max_waiting", self.max_waiting, 1)
        _check_seconds("deadline", self.deadline)
        for name in ("max_rows", "max_images", "threads", "memory"):
            if (value := getattr(self, name)) is not None:
                check_int(name, value, 1)
        if self.reload is not None:
            _check_seconds("reload", self.reload)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How it is offered.

    Attributes:
        host: address to listen on. Any but the machine's own needs keys.
        port: 0 takes a free one.
        keys: one of which every client must have; None where only this machine can connect.
        max_body: bytes of a request.
        stall: seconds after which a client that neither sends nor takes anything is let go.
        grace: seconds that running requests get when the server is to end.

    Raises:
        InvalidRequestError: a number is out of range, or others could connect without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys | None = None
    max_body: int = 32 * 2**20
    stall: float = 60.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        check_int("port", self.port, 0, 65_535)
        check_int("max_body", self.max_body, 1)
        _check_seconds("stall", self.stall)
        if self.grace != 0:
            _check_seconds("grace", self.grace)
        if self.keys is None and not is_loopback(self.host):
            raise InvalidRequestError(
                f"with the host {self.host!r} others than this machine may connect, who need a "
                "key: write keys into a file and give it as --api-key-file, or listen on 127.0.0.1"
            )


def _check_seconds(name: str, value: float) -> None:
    if not 0 < check_finite(name, value) <= MAX_SECONDS:
        raise InvalidRequestError(
            f"{name} must be seconds above 0 and up to {MAX_SECONDS:g}, not {value:g}"
        )
