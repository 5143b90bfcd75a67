"""``kdrt list``: the bundles there are."""

from __future__ import annotations

from typing import Annotated

import typer


def list_bundles(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    List the named bundles and the engines built from them.

    This does not check their files; [cyan]kdrt inspect[/cyan] does.
    """
    from kdrt.bundle import bundle_names
    from kdrt.cli.bundle_rows import describe
    from kdrt.cli.console import print_json, print_table
    from kdrt.common.home import home
    from kdrt.common.units import size

    found = [describe(name) for name in bundle_names()]
    if json:
        print_json([each.as_dict() for each in found])
    elif found:
        print_table(
            ("bundle", "family", "precision", "on disk#", "TensorRT engines"),
            [
                (each.name, each.family, each.precision, size(each.size), each.remark)
                for each in found
            ],
        )
    else:
        typer.echo(
            f"no bundles in {home() / 'bundles'}; `kdrt export demo` makes the first", err=True
        )
