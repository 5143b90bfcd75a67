"""``kdrt deploy``: a bundle for the servers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdrt.cli.engine_options import (
    CudaGraphOption,
    EngineOption,
    FallbackOption,
    MaxRowsOption,
)
from kdrt.errors import InvalidRequestError


def deploy(
    target: Annotated[
        str,
        typer.Argument(
            metavar="triton", show_default=False, help="The server: [cyan]triton[/cyan]."
        ),
    ],
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            show_default=False,
            help="Model repository of the server; the model becomes a folder in it.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default="the bundle's", help="Name of the model for clients."
        ),
    ] = None,
    max_rows: MaxRowsOption = None,
    engine: EngineOption = None,
    cuda_graph: CudaGraphOption = None,
    fallback: FallbackOption = None,
) -> None:
    """
    Write a bundle as a model for NVIDIA's Triton Inference Server.

    The folder holds `config.pbtxt`, the program that Triton's Python backend runs, and a copy of
    the bundle with the engines built from it. The Python of that backend needs
    [cyan]kdrt\\[serve][/cyan]. Requests share every evaluation of the model, as they do with
    [cyan]kdrt serve[/cyan]. An existing model of the same name is replaced if kdrt wrote it; other
    models stay.

    [bold]Examples[/bold]

      [cyan]kdrt deploy triton demo -o models[/cyan]
      [cyan]kdrt deploy triton sdxl -o models --name sdxl-fast --engine tensorrt[/cyan]
    """
    from kdrt.backends.choice import known_engine
    from kdrt.bundle import open_bundle
    from kdrt.common.validation import check_choice, check_int
    from kdrt.denoise.graph_level import CUDA_GRAPH_LEVELS
    from kdrt.serve.triton.repository import write_repository

    check_choice("target", target, ("triton",))
    if not output:
        raise InvalidRequestError("--output is empty: name a folder, as in -o models")
    if max_rows is not None:
        check_int("--max-rows", max_rows, 1)
    if cuda_graph is not None:
        check_choice("--cuda-graph", cuda_graph, CUDA_GRAPH_LEVELS)
    for each in (engine, fallback):
        if each is not None:
            known_engine(each)
    given = {
        "engine": engine,
        "fallback": fallback,
        "cuda_graph": cuda_graph,
        "max_rows": max_rows,
    }
    parameters = {key: str(value) for key, value in given.items() if value is not None}
    typer.echo(
        write_repository(open_bundle(bundle), Path(output), name=name, parameters=parameters)
    )
