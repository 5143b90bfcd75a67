"""``kdrt rm``: remove bundles."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def rm(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE", show_default=False, help="Names or folders.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """
    Remove bundles, with the engines built from them.

    A folder that holds anything kdrt did not write is left as it is.

    [bold]Examples[/bold]

      [cyan]kdrt rm demo[/cyan]
      [cyan]kdrt rm ./my-bundle sd15-style --yes[/cyan]
    """
    from kdrt.bundle import check_removable, remove_bundle
    from kdrt.cli.bundle_rows import folder_size
    from kdrt.common.units import size
    from kdrt.errors import InvalidRequestError

    # All of them are looked at before the first is removed.
    found = {path.resolve(): path for path in map(check_removable, bundles)}
    if not yes and not sys.stdin.isatty():
        raise InvalidRequestError(
            "kdrt rm asks before it removes, and there is no terminal to ask on; add --yes"
        )
    for path in found.values():
        question = f"remove {path} ({size(folder_size(path))})?"
        if not yes and not typer.confirm(question, err=True):
            continue
        typer.echo(f"removed {remove_bundle(path)}")
