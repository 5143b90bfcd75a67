"""``kdrt info``: how a picture was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A picture.")],
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    Print the generation parameters that a picture carries.

    [bold]Examples[/bold]

      [cyan]kdrt info circle.png[/cyan]
      [cyan]kdrt info circle.png --json[/cyan]
    """
    from PIL import UnidentifiedImageError

    import kdrt
    from kdrt.cli.console import print_json, print_rows
    from kdrt.errors import InvalidRequest
    from kdrt.parameters import parse_parameters

    try:
        text = kdrt.read_parameters(file)
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{file} is not a picture") from error
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror or error}") from error
    if text is None:
        raise InvalidRequest(f"{file} carries no generation parameters")
    parameters = parse_parameters(text)
    if json:
        print_json(parameters)
    else:
        print_rows(str(file), list(parameters.items()))
