"""``kdrt serve --workers`` and ``--devices``: these options, and the service that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kdrt.cli.engine_options import RUNNING
from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from kdrt.serve.log import LogFormat
    from kdrt.serve.service import ImageService
    from kdrt.serve.settings import ModelSettings, ServiceSettings

WorkersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=RUNNING,
        show_default="none: this process makes them",
        help="Processes that make images; they share the threads of the machine.",
    ),
]

DevicesOption = Annotated[
    str | None,
    typer.Option(
        metavar="GPU,…",
        rich_help_panel=RUNNING,
        show_default="the first",
        help="GPUs to use, such as 0,1; each gets a process of its own.",
    ),
]


def service_of(
    models: list[ModelSettings],
    settings: ServiceSettings,
    workers: int | None,
    devices: str | None,
    log: LogFormat,
) -> ImageService:
    """A service of this process, or one of several processes if they are asked for.

    Raises:
        InvalidRequestError: both options are given, or one is wrong.
        KdrtError: see `ImageService`.
    """
    if workers is not None and devices is not None:
        raise InvalidRequestError(
            "--workers and --devices exclude each other: each device gets one worker"
        )
    if workers is None and devices is None:
        from kdrt.serve.service import ImageService

        return ImageService(models, settings)
    from kdrt.serve.remote import RemoteService
    from kdrt.serve.workers.figures import PoolMetrics
    from kdrt.serve.workers.pool import WorkerPool
    from kdrt.serve.workers.specs import worker_specs

    chosen = None if devices is None else _devices(devices)
    pool = WorkerPool(worker_specs(models, settings, workers=workers, devices=chosen, log=log))
    return RemoteService(models, settings, pool, PoolMetrics(pool))


def _devices(text: str) -> list[str]:
    """The names of GPUs."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InvalidRequestError(
            f"--devices takes GPUs with commas between them, as in 0,1, not {text!r}"
        )
    return names
