"""Does a server lose or leak anything under twice the load that it can carry?

    python benchmarks/soak.py BUNDLE [--minutes 10] [--rude] [-o benchmarks/results]

Starts ``kdrt serve BUNDLE`` on this machine, for itself alone, and measures for a short while what
it can do. Then twice as many requests come at random times (a Poisson process; they come whether or
not those before them are answered), in the dialects that it speaks: OpenAI's, the web UI's, kdrt's
own, with streams and without. Every answer that claims success is checked: all its images, which
can be decoded, and one end. With ``--rude`` as many clients come that vanish at some moment, send
garbage, or stall.

It fails, with exit code 1 and the reasons, where an accepted request is not answered wholly, where
anything but 429, 503 or 504 is refused with, where memory grows in the second half, where threads
or files are left over, where images wait or run when nothing is asked for, or where an image made
afterwards is not the one made before.

Models of 64x64 pixels only, such as ``demo``: the mix of requests is for them. Prints the report,
then one line of JSON; ``-o`` also writes ``soak.md``, ``.json`` and ``.svg``, or ``soak_rude.*``.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from kdrt_bench.soak.report import SoakReport, markdown, plot, report_of
from kdrt_bench.soak.run import Settings, soak
from kdrt_bench.soak.server import server_of
from kdrt_bench.soak.verdict import Bounds


def main(
    bundle: Annotated[str, typer.Argument(help="Name or folder.")],
    minutes: Annotated[float, typer.Option(min=0.05, help="Of load.")] = 10.0,
    rude: Annotated[bool, typer.Option(help="Clients that vanish, send garbage or stall.")] = False,
    load: Annotated[float, typer.Option(min=0.1, help="Over what it can carry.")] = 2.0,
    growth: Annotated[
        float, typer.Option(help="MiB a minute that memory may grow in the second half.")
    ] = Bounds().growth,
    patience: Annotated[
        float, typer.Option(help="Seconds after which a client that stalls must be let go.")
    ] = 75.0,
    serve: Annotated[
        str, typer.Option(metavar="OPTIONS", help="More options of `kdrt serve`, in one string.")
    ] = "--max-waiting 32",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER")] = None,
) -> None:
    """Put a server under load, and say what it lost."""
    settings = Settings(
        seconds=60 * minutes,
        capacity_seconds=min(30.0, 15 * minutes),
        load=load,
        is_rude=rude,
        patience=patience,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        server_of(bundle, Path(folder) / "log", shlex.split(serve)) as server,
    ):
        seen = asyncio.run(soak(server, settings, _say))
        if seen.facts.tracebacks:
            typer.echo(server.log.read_text(encoding="utf-8"), err=True)
    bounds = Bounds(growth=growth)
    report = report_of(seen, settings, bounds, serve)
    if output is not None:
        _write(report, output, "soak_rude" if rude else "soak")
    print(markdown(report))
    print(report.model_dump_json())
    if report.failures:
        raise typer.Exit(1)


def _write(report: SoakReport, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{markdown(report)}\n\n![Memory, threads and images over time]({name}.svg)\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.svg").write_text(plot(report), encoding="utf-8")


def _say(what: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {what}", err=True)


if __name__ == "__main__":
    typer.run(main)
