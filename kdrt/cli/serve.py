"""``kdrt serve``: images over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kdrt.cli.engine_options import (
    RUNNING,
    CudaGraphOption,
    EngineOption,
    FallbackOption,
    MaxRowsOption,
)
from kdrt.cli.serve_ray import (
    MaxReplicasOption,
    MinReplicasOption,
    ModelsPerReplicaOption,
    NumCpusOption,
    NumGpusOption,
    RayAddressOption,
    RayOption,
    ray_settings,
    run_on_ray,
)
from kdrt.cli.serve_workers import DevicesOption, WorkersOption, service_of
from kdrt.errors import InvalidRequestError, KdrtError

if TYPE_CHECKING:
    from kdrt.serve.settings import ModelSettings

_ACCESS, _LIMITS = "Who may come in", "What they may ask for"
_MEBIBYTE = 2**20
_MOST_GB = 100_000


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE",
            show_default=False,
            help="Names or folders of bundles; the first serves requests that name none.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=_ACCESS,
            help="Address to listen on. Any address that other machines can reach needs keys.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_ACCESS, help="Port; 0 takes a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            rich_help_panel=_ACCESS,
            show_default=False,
            help="A file with one key per line; every client must send one of them.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[BUNDLE:]NAME=FILE",
            rich_help_panel=_LIMITS,
            show_default=False,
            help="A LoRA that clients may ask for by this name, with one bundle or with all; may "
            "be repeated.",
        ),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            metavar="N",
            rich_help_panel=_LIMITS,
            help="Maximum waiting images per model. Further requests are refused and told when to "
            "try again.",
        ),
    ] = 64,
    max_pixels: Annotated[
        int,
        typer.Option(
            "--max-pixels", metavar="N", rich_help_panel=_LIMITS, help="Maximum pixels per image."
        ),
    ] = 2**21,
    max_steps: Annotated[
        int,
        typer.Option(
            "--max-steps", metavar="N", rich_help_panel=_LIMITS, help="Maximum steps per image."
        ),
    ] = 150,
    max_images: Annotated[
        int,
        typer.Option(
            "--max-images", metavar="N", rich_help_panel=_LIMITS, help="Maximum images per request."
        ),
    ] = 10,
    max_prompt: Annotated[
        int,
        typer.Option(
            "--max-prompt",
            metavar="N",
            rich_help_panel=_LIMITS,
            help="Maximum characters per prompt.",
        ),
    ] = 8_000,
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body", metavar="MIB", rich_help_panel=_LIMITS, help="Maximum MiB per request."
        ),
    ] = 32,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=_LIMITS,
            help="Maximum time per request, waiting included.",
        ),
    ] = 300.0,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            rich_help_panel=RUNNING,
            help="Time that running requests get when the server is told to end.",
        ),
    ] = 30.0,
    warmup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            rich_help_panel=RUNNING,
            show_default="the model's size",
            help="A size to warm up before the server is ready; may be repeated.",
        ),
    ] = None,
    no_warmup: Annotated[
        bool,
        typer.Option(
            "--no-warmup",
            rich_help_panel=RUNNING,
            help="Be ready as soon as the models are loaded.",
        ),
    ] = False,
    max_rows: MaxRowsOption = None,
    workers: WorkersOption = None,
    devices: DevicesOption = None,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            rich_help_panel=RUNNING,
            show_default="all stay loaded",
            help="Maximum memory of all loaded bundles together; the least recently used ones make "
            "room for others.",
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload/--no-reload",
            rich_help_panel=RUNNING,
            help="Load a bundle again after it was exported again.",
        ),
    ] = True,
    engine: EngineOption = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RUNNING,
            show_default="one per core",
            help="CPU threads of each model, in each process.",
        ),
    ] = None,
    cuda_graph: CudaGraphOption = None,
    fallback: FallbackOption = None,
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            metavar="text|json",
            rich_help_panel=RUNNING,
            help="Format of the lines on standard error.",
        ),
    ] = "text",
    ray: RayOption = False,
    ray_address: RayAddressOption = None,
    min_replicas: MinReplicasOption = None,
    max_replicas: MaxReplicasOption = None,
    num_gpus: NumGpusOption = None,
    num_cpus: NumCpusOption = None,
    models_per_replica: ModelsPerReplicaOption = None,
) -> None:
    """
    Serve images over HTTP.

    Clients of OpenAI's images API work unmodified at [cyan]/v1[/cyan]; [cyan]/v1/generate[/cyan]
    takes every field of a request. The requests of all clients share every evaluation of the model,
    whatever their samplers, steps and prompts are. Only this machine can connect, unless you give
    keys. Ctrl-C ends the server after the running requests are finished.

    [bold]Examples[/bold]

      [cyan]kdrt serve demo[/cyan]
      [cyan]kdrt serve sdxl --warmup 1024x1024 --lora style=style.safetensors[/cyan]
      [cyan]kdrt serve sdxl --devices 0,1,2,3[/cyan]
      [cyan]kdrt serve sdxl sd15 --memory 12[/cyan]
      [cyan]kdrt serve sdxl --ray --max-replicas 4[/cyan]
      [cyan]kdrt serve sdxl --host 0.0.0.0 --api-key-file keys.txt --max-waiting 200[/cyan]
    """
    _check_installed()
    from kdrt.common.validation import check_choice, check_int
    from kdrt.serve import server
    from kdrt.serve.auth import Keys
    from kdrt.serve.limits import RequestLimits
    from kdrt.serve.log import LogFormat, start_logging
    from kdrt.serve.settings import RELOAD_SECONDS, ServerSettings, ServiceSettings

    check_choice("--log-format", log_format, ("text", "json"))
    if no_warmup and warmup:
        raise InvalidRequestError("--warmup and --no-warmup exclude each other: give one of them")
    service_settings = ServiceSettings(
        limits=RequestLimits(
            pixels=max_pixels, steps=max_steps, images=max_images, prompt=max_prompt
        ),
        max_waiting=max_waiting,
        deadline=deadline,
        warmup=() if no_warmup else _sizes(warmup),
        max_rows=max_rows,
        memory=None if memory is None else _bytes(memory),
        reload=RELOAD_SECONDS if reload else None,
        engine=engine,
        threads=threads,
        cuda_graph=cast(Any, cuda_graph),  # checked where it is used
        fallback=fallback,
    )
    server_settings = ServerSettings(
        host=host,
        port=port,
        keys=None if api_key_file is None else Keys.read(api_key_file),
        max_body=check_int("--max-body", max_body, 1, 4096) * _MEBIBYTE,
        grace=grace,
    )
    form = cast(LogFormat, log_format)
    models = _models(bundles, lora or [])
    on_ray = ray_settings(
        ray, ray_address, min_replicas, max_replicas, num_gpus, num_cpus, models_per_replica
    )
    if on_ray is not None:
        if workers is not None or devices is not None:
            raise InvalidRequestError(
                "--workers and --devices are for this process; on Ray it is --min-replicas and "
                "--num-gpus"
            )
        if memory is not None:
            raise InvalidRequestError(
                "--memory is for this process; on Ray it is --models-per-replica"
            )
        start_logging(form)
        run_on_ray(models, service_settings, server_settings, on_ray, ray_address, form)
        return
    service = service_of(models, service_settings, workers, devices, form)
    start_logging(form)
    server.serve(service, server_settings, lambda url: _announce(url, list(service.models)))


def _check_installed() -> None:
    from importlib.util import find_spec

    for name in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "python_multipart"):
        if find_spec(name) is None:
            raise KdrtError(
                f"`kdrt serve` needs the package '{name}', which is not installed; "
                "pip install 'kdrt[serve]'"
            )


def _sizes(given: list[str] | None) -> tuple[tuple[int, int], ...] | None:
    """(height, width) of each; None where none is given."""
    from kdrt.request.text_forms import SIZE

    if not given:
        return None
    try:
        return tuple(SIZE.read(text) for text in given)
    except ValueError as error:
        raise InvalidRequestError(
            f"--warmup takes {SIZE.meaning}, as in {SIZE.example}, not {', '.join(given)!r}"
        ) from error


def _bytes(gigabytes: float) -> int:
    if not 0 < gigabytes <= _MOST_GB:
        raise InvalidRequestError(
            f"--memory takes GB above 0 and up to {_MOST_GB}, as in --memory 16, not {gigabytes:g}"
        )
    return round(gigabytes * 1e9)


def _models(bundles: list[str], loras: list[str]) -> list[ModelSettings]:
    """The bundles, each with the LoRAs that are for it."""
    from kdrt.serve.settings import ModelSettings

    files: dict[str, dict[str, Path]] = {bundle: {} for bundle in bundles}
    for text in loras:
        name, equals, file = text.partition("=")
        bundle, colon, short = name.rpartition(":")
        if not equals or not short or not file or (colon and bundle not in files):
            raise InvalidRequestError(
                "--lora takes a name and a file, as in style=style.safetensors, or with one of "
                f"the bundles before it, as in {bundles[0]}:style=style.safetensors, not {text!r}"
            )
        for each in [bundle] if colon else bundles:
            if short in files[each]:
                raise InvalidRequestError(
                    f"--lora names {short!r} twice for the bundle {each}: give each LoRA a name of "
                    "its own"
                )
            files[each][short] = Path(file)
    return [ModelSettings(bundle=bundle, loras=files[bundle]) for bundle in bundles]


def _announce(url: str, models: list[str]) -> None:
    typer.echo(f"{', '.join(models)} on {url} (OpenAI's API: {url}/v1, all others: {url}/docs)")
