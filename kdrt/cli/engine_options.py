"""Options of every command that loads a bundle's engines."""

from __future__ import annotations

from typing import Annotated

import typer

RUNNING = "Running"
"""The panel of these options in the help."""

EngineOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RUNNING,
        show_default="the best here",
        help="Engine that runs the networks; see [cyan]kdrt doctor[/].",
    ),
]

FallbackOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=RUNNING,
        show_default=False,
        help="Another engine, for networks that the first one was not built for.",
    ),
]

CudaGraphOption = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        rich_help_panel=RUNNING,
        show_default="step on CUDA, else off",
        help="How much of a run to capture in CUDA graphs: off, step or loop.",
    ),
]

MaxRowsOption = Annotated[
    int | None,
    typer.Option(
        "--max-rows",
        metavar="N",
        rich_help_panel=RUNNING,
        show_default="8 on a CPU, 16 on a GPU",
        help="Maximum rows of one evaluation of the UNet. Requests share it; an image with "
        "guidance takes two.",
    ),
]
