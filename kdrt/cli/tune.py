"""``kdrt tune``: find the fastest engine of this machine for a bundle."""

from __future__ import annotations

from typing import Annotated

import typer


def tune(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder.")
    ],
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="A network to time; may be repeated. The default is all networks that every image "
            "needs.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="square|portrait|landscape|any|static:HxWxB",
            show_default=False,
            help="The size to time at. The default is the model's own.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Runs of each engine, at least 10.")
    ] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    Time the engines of this machine on a bundle, and use the fastest from now on.

    Each network runs with every engine that is installed here, in turns. Only engines that compute
    in the same precision and give the same results are compared. The bundle records the winner, for
    this machine and these versions. kdrt uses it whenever you name no engine, and
    [cyan]kdrt doctor[/cyan] shows it.

    Run nothing else meanwhile. By default each network runs ten times with each engine, which takes
    seconds for the demo model and minutes for others.

    [bold]Examples[/bold]

      [cyan]kdrt tune demo[/cyan]
      [cyan]kdrt tune sdxl --component unet --profile static:1024x1024x1 --rounds 20[/cyan]
    """
    from kdrt.backends.profiles import DEFAULT
    from kdrt.backends.tuned import keep_tuned
    from kdrt.build import tune as tuning
    from kdrt.bundle import open_bundle
    from kdrt.cli.console import print_json, print_rows
    from kdrt.common.terminal_report import TerminalReport

    opened = open_bundle(bundle)
    with TerminalReport() as report:
        found = tuning.tune(
            opened,
            components=component or (),
            profiles=DEFAULT if profile is None else (profile,),
            rounds=rounds,
            report=report,
        )
    place = keep_tuned(opened, found)
    if json:
        print_json({name: each.model_dump() for name, each in found.items()})
    else:
        print_rows("used from now on", [(name, each.engine) for name, each in found.items()])
        typer.echo(place)
