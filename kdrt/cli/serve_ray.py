"""``kdrt serve --ray``: its options, and the application that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdrt.errors import InvalidRequestError, KdrtError

if TYPE_CHECKING:
    from kdrt.serve.log import LogFormat
    from kdrt.serve.ray.settings import RaySettings
    from kdrt.serve.settings import ModelSettings, ServerSettings, ServiceSettings

_PANEL = "On a Ray cluster"

RayOption = Annotated[
    bool,
    typer.Option(
        "--ray",
        rich_help_panel=_PANEL,
        help="Make the images on Ray. Without --ray-address, a cluster is started on this machine.",
    ),
]

RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        rich_help_panel=_PANEL,
        show_default=False,
        help="A running cluster, such as [cyan]auto[/] or [cyan]head:6379[/]. Each of its "
        "machines must have the bundles under the same path.",
    ),
]

MinReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--min-replicas",
        metavar="N",
        rich_help_panel=_PANEL,
        show_default="1",
        help="Minimum number of replicas; with 0, all of them end while there are no requests.",
    ),
]

MaxReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--max-replicas",
        metavar="N",
        rich_help_panel=_PANEL,
        show_default="as --min-replicas",
        help="Maximum number of replicas; Ray starts more as more requests wait.",
    ),
]

NumGpusOption = Annotated[
    float | None,
    typer.Option(
        "--num-gpus",
        metavar="N",
        rich_help_panel=_PANEL,
        show_default="1 if this machine has any",
        help="GPUs per replica; with less than 1, several replicas share one GPU.",
    ),
]

NumCpusOption = Annotated[
    float | None,
    typer.Option(
        "--num-cpus",
        metavar="N",
        rich_help_panel=_PANEL,
        show_default="1",
        help="CPUs per replica; a replica that runs on a CPU uses as many threads.",
    ),
]

ModelsPerReplicaOption = Annotated[
    int | None,
    typer.Option(
        "--models-per-replica",
        metavar="N",
        rich_help_panel=_PANEL,
        show_default="all",
        help="Models that a replica keeps loaded: those that were used last.",
    ),
]


def ray_settings(
    asked: bool,
    address: str | None,
    min_replicas: int | None,
    max_replicas: int | None,
    num_gpus: float | None,
    num_cpus: float | None,
    models_per_replica: int | None,
) -> RaySettings | None:
    """What the options say; None without ``--ray``.

    Raises:
        KdrtError: Ray is not installed.
        InvalidRequestError: a number is out of range, or options mean nothing without ``--ray``.
    """
    if not asked:
        given = {
            "--ray-address": address,
            "--min-replicas": min_replicas,
            "--max-replicas": max_replicas,
            "--num-gpus": num_gpus,
            "--num-cpus": num_cpus,
            "--models-per-replica": models_per_replica,
        }
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise InvalidRequestError(
                f"{', '.join(names)} is for a Ray cluster: add --ray, or leave it out"
            )
        return None
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise KdrtError(
            "`kdrt serve --ray` needs the package 'ray', which is not installed; "
            "pip install 'kdrt[ray]'"
        )
    import torch

    from kdrt.serve.ray.settings import RaySettings

    least = 1 if min_replicas is None else min_replicas
    return RaySettings(
        min_replicas=least,
        max_replicas=max(1, least) if max_replicas is None else max_replicas,
        num_gpus=float(torch.cuda.is_available()) if num_gpus is None else num_gpus,
        num_cpus=1.0 if num_cpus is None else num_cpus,
        models_per_replica=models_per_replica,
    )


def run_on_ray(
    models: Sequence[ModelSettings],
    service: ServiceSettings,
    server: ServerSettings,
    ray: RaySettings,
    address: str | None,
    log: LogFormat,
) -> None:
    """Serve until a signal comes. Everything that can be is checked before a cluster is started.

    Raises:
        KdrtError: see `ImageService` and `kdrt.serve.ray.cluster.serve_on_ray`.
    """
    from kdrt.serve.ray.cluster import serve_on_ray
    from kdrt.serve.ray.settings import Application
    from kdrt.serve.service import ImageService

    if server.port == 0:
        raise InvalidRequestError(
            "with --ray the port is that of Ray's proxies: give one as --port"
        )
    names = ", ".join(ImageService(models, service).models)
    application = Application(
        # What is relative to this process's folder is not so to Ray's.
        models=[_absolute(model) for model in models],
        service=service,
        server=server,
        ray=ray,
        log=log,
    )
    serve_on_ray(application, address, lambda url: typer.echo(f"{names} on {url}, made on Ray"))


def _absolute(model: ModelSettings) -> ModelSettings:
    folder = Path(model.bundle).expanduser()
    return replace(
        model,
        bundle=str(folder.absolute()) if folder.is_dir() else model.bundle,
        loras={name: file.absolute() for name, file in model.loras.items()},
    )
