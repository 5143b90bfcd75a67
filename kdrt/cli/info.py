"""``kdrt info``: how an image was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="An image.")],
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """
    Print the generation parameters in an image, the program that wrote them, and the command that
    makes the image again.

    The text in an image does not hold everything that shaped it, such as an initial image or the
    files of LoRAs. What the command therefore lacks is on a line of its own: add those options
    yourself.

    kdrt reads the parameters that it writes itself, those of the AUTOMATIC1111 web UI and programs
    that use its format, and those of ComfyUI, InvokeAI, NovelAI and Fooocus.

    [bold]Examples[/bold]

      [cyan]kdrt info circle.png[/cyan]
      [cyan]kdrt info circle.png --json[/cyan]
    """
    import re
    import warnings

    from kdrt.cli.command import command_of
    from kdrt.cli.console import print_json, print_rows
    from kdrt.images.metadata import check_metadata
    from kdrt.request.recorded import request_of_settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damage that it works around
        found = check_metadata(file)
    parameters = {"Program": found.program} | dict(found.settings)
    recorded = request_of_settings(found.settings, found.program).usable()
    parameters["Command"] = command_of(recorded.model or "BUNDLE", recorded.fields)
    if recorded.left_out:
        parameters["Not in the command"] = ", ".join(
            f"{key} ({value})" for key, value in recorded.left_out.items()
        )
    if json:
        print_json(parameters)
        return
    # A file from a stranger must not steer the terminal.
    plain = [
        re.sub(r"[^\n\t -~\xa0-\U0010ffff]", "\ufffd", text)
        for pair in parameters.items()
        for text in pair
    ]
    print_rows(str(file), list(zip(plain[::2], plain[1::2], strict=True)))
