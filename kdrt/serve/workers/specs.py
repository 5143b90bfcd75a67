"""Which workers there are: devices, threads, environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdrt.common.validation import check_int
from kdrt.errors import InvalidRequestError
from kdrt.serve.log import LogFormat
from kdrt.serve.remote import replica_settings
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.workers.messages import Start
from kdrt_engines.processors import cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MOST = 64


@dataclass(frozen=True)
class WorkerSpec:
    """How a worker is started, as often as it must be.

    Attributes:
        start: the first message to it.
        environment: of its process, in addition to the front's.
    """

    start: Start
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in the log and in the metrics."""
        return self.start.name


def worker_specs(
    models: Sequence[ModelSettings],
    settings: ServiceSettings,
    *,
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    log: LogFormat = "text",
) -> list[WorkerSpec]:
    """So many workers, or one for each of these GPUs.

    Args:
        models, settings: of the service. Where no ``threads`` are given, those of the machine are
            divided among the workers.
        workers: how many.
        devices: numbers of GPUs, counted among those that this process may use, or their UUIDs.
        log: of their lines on standard error.

    Raises:
        InvalidRequestError: neither or both are given, no device is, or a number is out of range.
    """
    if (workers is None) == (devices is None):
        raise InvalidRequestError("give either a number of workers or the devices to run them on")
    if devices is not None and not devices:
        raise InvalidRequestError("give at least one device to run workers on, as in 0")
    visible = _visible(devices or ())
    count = len(visible) if workers is None else check_int("workers", workers, 1, _MOST)
    threads = max(1, cores() // count) if settings.threads is None else settings.threads
    settings = replace(replica_settings(settings), threads=threads)
    # PyTorch's own threads, which no setting of an engine reaches.
    environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    return [
        WorkerSpec(
            Start(
                name=str(number),
                models=tuple(models),
                settings=settings,
                needs_gpu=devices is not None,
                log=log,
            ),
            environment | ({_VISIBLE: visible[number]} if devices is not None else {}),
        )
        for number in range(count)
    ]


def environment_of(spec: WorkerSpec) -> dict[str, str]:
    """All of it: this process's, with the packages that this process has."""
    paths = [path for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **spec.environment}


def _visible(devices: Sequence[str]) -> list[str]:
    """The devices as CUDA's variable names them, which may have been set for this process."""
    if len(set(devices)) < len(devices):
        raise InvalidRequestError(
            f"each device gets one worker: name none twice, not {','.join(devices)!r}"
        )
    given = os.environ.get(_VISIBLE)
    if given is None:
        return list(devices)
    allowed = [each.strip() for each in given.split(",") if each.strip()]
    named = []
    for device in devices:
        if device.isdecimal() and int(device) >= len(allowed):
            raise InvalidRequestError(
                f"there is no device {device}: {_VISIBLE} allows this process "
                f"{len(allowed)} ({given})"
            )
        named.append(allowed[int(device)] if device.isdecimal() else device)
    return named
