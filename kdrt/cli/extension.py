"""Commands of other packages: functions as typer takes them, found by the entry points of the
group ``kdrt.commands``. Nothing of such a package is imported before its command is called."""

from __future__ import annotations

import typer

from kdrt.errors import KdrtError

GROUP = "kdrt.commands"


def run_extension(name: str, arguments: list[str]) -> None:
    """Run the command ``name`` of another package.

    Args:
        name: of its entry point, and of kdrt's extra that installs what it needs.
        arguments: what follows the name on the command line.

    Raises:
        KdrtError: it is not installed, or lacks a package.
        SystemExit: it has run; with its exit code.
    """
    from importlib.metadata import entry_points

    from kdrt.cli.app import add_command, new_app

    install = f"pip install 'kdrt[{name}]'"
    found = [*entry_points(group=GROUP, name=name)]
    if not found:
        raise KdrtError(f"`kdrt {name}` is not installed; {install}")
    try:
        function = found[0].load()
    except ModuleNotFoundError as error:
        raise KdrtError(
            f"`kdrt {name}` needs the package '{error.name}', which is not installed; {install}"
        ) from error
    app = new_app(name, add_completion=False)
    add_command(app, function)
    typer.main.get_command(app).main(arguments, prog_name=f"kdrt {name}")
