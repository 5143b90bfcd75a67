"""The command line: ``kdrt``. One file a command; each imports what it needs when it runs, so
that help and version come at once.

A :class:`~kdrt.errors.KdrtError` becomes one line on standard error and exit code 2, Ctrl-C
exit code 130, SIGTERM 143. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import inspect as reflection
import re
import signal
import sys
from collections.abc import Callable
from itertools import takewhile
from typing import Annotated

import typer

from kdrt.cli import bench, build, doctor, export, generate, info, inspect, samplers, schedules

__all__ = ["app", "main"]

_HELP = """
Text to image with Stable Diffusion and SDXL, on the samplers of k-diffusion.

A model is exported once into a [bold]bundle[/bold]: one folder with its networks as ONNX, its
tokenizers and its noise schedule. Pictures are generated from bundles; that needs neither
diffusers nor transformers.

[bold]Begin here[/bold] (the demo model is part of kdrt, nothing is downloaded)

  [cyan]kdrt export demo[/cyan]
  [cyan]kdrt generate demo "a red circle on a blue background" -o circle.png[/cyan]
  [cyan]kdrt info circle.png[/cyan]

[bold]With your own model[/bold]

  [cyan]kdrt export ./my-model.safetensors --name mine[/cyan]
  [cyan]kdrt generate mine "a lighthouse at dusk" --steps 25 --sampler dpmpp_2m[/cyan]

Bundles with a name live in [cyan]$KDRT_HOME/bundles[/cyan]; [cyan]kdrt doctor[/cyan] shows where
that is.
"""


def _reflowed(text: str) -> str:
    """Paragraphs as one line each, for the terminal to wrap; indented ones as they are."""
    paragraphs = reflection.cleandoc(text).split("\n\n")
    return "\n\n".join(_kept(p) if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


def _kept(paragraph: str) -> str:
    """Hide the indentation from typer, which would remove it."""
    return re.sub(r"^ +", r"[default]\g<0>[/default]", paragraph, flags=re.MULTILINE)


app = typer.Typer(
    name="kdrt",
    help=_reflowed(_HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from kdrt._version import __version__

        typer.echo(f"kdrt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What comes before the command; ``run`` looks for --debug itself."""


def _add(panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(rich_help_panel=panel, help=_reflowed(command.__doc__ or ""))(command)


_add("Models", export.export, build.build, inspect.inspect)
_add("Pictures", generate.generate, info.info)
_add("What there is", samplers.samplers, schedules.schedules, doctor.doctor, bench.bench)


def main() -> None:
    """The ``kdrt`` command: run it and leave with its exit code."""
    # By default the process would be gone at once, and what it had half written would stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        typer.main.get_command(app).main(arguments, prog_name="kdrt")
    except SystemExit as leave:
        return _code(leave)
    except Exception as error:
        message = _message(error)
        if message is None or "--debug" in takewhile(lambda a: a[:1] == "-", arguments):
            raise
        _complain("error:", message)
        return 2
    return 0


def _code(leave: SystemExit) -> int:
    if leave.code == 130:  # typer's answer to Ctrl-C
        _complain("interrupted", "")
    elif leave.code == 128 + signal.SIGTERM:
        _complain("terminated", "")
    return leave.code if isinstance(leave.code, int) else int(leave.code is not None)


def _message(error: Exception) -> str | None:
    """The sentence for the user, or None for a bug."""
    from kdrt.errors import KdrtError

    if isinstance(error, KdrtError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _complain(prefix: str, message: str) -> None:
    typer.secho(prefix, err=True, fg=typer.colors.RED, bold=True, nl=False)
    typer.echo(f" {message}" if message else "", err=True)
