"""``kdrt trust``: load what somebody else derived from a bundle."""

from __future__ import annotations

from typing import Annotated

import typer


def trust(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder.")
    ],
) -> None:
    """
    Trust the engines inside a bundle that you did not export or build here.

    Engines, optimised graphs and PyTorch programs can run any code, so kdrt loads only those that
    you made here. Trust those in a bundle that you made on another machine, or that you got from
    somebody whose programs you would run on this machine. The rest of a bundle needs no trust.

    [bold]Examples[/bold]

      [cyan]kdrt trust ./copied-bundle[/cyan]
    """
    from kdrt.backends.trust import trust_bundle
    from kdrt.bundle import open_bundle

    found = trust_bundle(open_bundle(bundle))
    for path in found:
        typer.echo(path)
    if not found:
        typer.echo("nothing to do: the bundle holds no engines for this machine", err=True)
