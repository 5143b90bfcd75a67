"""``kdrt schedules``: the noise schedules and their options, as a table or a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def schedules(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Draw the noise levels of a run, as .png, .svg or .pdf.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of the run that is drawn.")] = 20,
) -> None:
    """
    List the noise schedules: how the noise levels of a run are spaced.

    The names of ComfyUI and of web UIs work too. Give an option to [cyan]kdrt generate[/] as
    [cyan]--schedule-option rho=5[/].
    """
    from kdrt.cli.console import print_json, print_table
    from kdrt.sampling import SCHEDULES

    if plot is not None:
        from kdrt.cli.schedule_plot import plot_schedules

        typer.echo(plot_schedules(plot, steps))
        return
    if json:
        print_json(
            [
                {
                    "name": info.name,
                    "label": info.label,
                    "aliases": list(info.aliases),
                    "range": info.covers,
                    "meaning": info.meaning,
                    "options": dict(info.options),
                }
                for info in SCHEDULES.values()
            ]
        )
        return
    print_table(
        ("schedule", "web UI name", "range", "noise levels"),
        [(info.name, info.label, info.covers, info.meaning) for info in SCHEDULES.values()],
    )
    typer.echo()
    print_table(
        ("schedule", "options"),
        [
            (info.name, " ".join(f"{name}={_shown(name, value)}" for name, value in options))
            for info in SCHEDULES.values()
            if (options := [(k, v) for k, v in info.options.items() if k != _COMMON])
        ],
    )
    typer.echo(
        f"\nEvery schedule also has {_COMMON}, off by default. None leaves a range to the "
        "checkpoint, and linear_steps to half of the steps."
    )


_COMMON = "discard_penultimate"
_CHECKPOINTS = ("timestep_spacing", "steps_offset", "model")


def _shown(name: str, value: Any) -> str:
    if name in _CHECKPOINTS:
        return "checkpoint's"
    return f"{value:g}" if isinstance(value, float) else str(value)
