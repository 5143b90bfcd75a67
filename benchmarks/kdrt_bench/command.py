"""``kdrt bench``, which the command line finds by the entry point ``kdrt.commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_REAL = "sd15"


def bench(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the report goes."),
    ] = Path("bench"),
    suite: Annotated[
        str, typer.Option(help="quick (two minutes), full (half an hour) or gpu.")
    ] = "quick",
    versus: Annotated[
        str | None,
        typer.Option(
            "--vs",
            metavar="PEER,…",
            help="Peers to compare with; the suite has its own.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[str, typer.Option(help="Name or folder of the model.")] = "demo",
    real: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default="sd15",
            help="Architecture of the full suite's networks of real size, with random weights: "
            "a short name or a diffusers folder. 'none' leaves them out.",
        ),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=1, max=512, show_default="the architecture's own", help="Latents a side of those."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Of whole images; each experiment has its own.",
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=100,
            metavar="SCALE",
            help="Of whole images; 1 is none.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="KEY,…", help="Some experiments of the suite.", show_default=False),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Of every experiment; each has its own.", show_default=False
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Of every row; one a core.", show_default=False),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Measure the experiments of --only again, and keep the others of the report that "
            "is in the folder.",
        ),
    ] = False,
) -> None:
    """
    Measure how fast this machine makes images with kdrt and with its peers.

    Every row is a process of its own; the rows of an experiment take turns, and their images are
    compared. Writes [bold]report.json[/bold], [bold]report.html[/bold] and the images into a
    folder; the last line of standard output is the report as one JSON document.

    Peers: eager, diffusers, compile, compile-max, onnxruntime-plain, openvino, openvino-default,
    openvino-genai, openvino-genai-default, sd-cpp-f32, sd-cpp-f16, sd-cpp-q8_0, eager-bf16, and
    kdrt:ENGINE, kdrt with one of its engines.

    [bold]Examples[/bold]

      [cyan]kdrt bench[/cyan]
      [cyan]kdrt bench --vs openvino,compile -o against-peers[/cyan]
      [cyan]kdrt bench --vs kdrt:openvino,kdrt:torch --only step -o engines[/cyan]
      [cyan]kdrt bench --suite full -o results[/cyan]
      [cyan]kdrt bench --suite full --only image-real --update -o results[/cyan]
      [cyan]kdrt bench --suite full --real sdxl --only image-real --steps 20 --guidance 7[/cyan]
    """
    from kdrt_bench.requirements import check_possible

    check_possible(suite)
    from kdrt.backends.doctor import examine
    from kdrt.errors import InvalidRequestError
    from kdrt_bench.experiment import Sampling
    from kdrt_bench.measure import Measurement
    from kdrt_bench.models import model_of, real_size
    from kdrt_bench.progress import BenchProgress, print_table
    from kdrt_bench.suites import experiments, peers_of, selected
    from kdrt_bench.updating import check_same_work, keep_images, report_to_update, updated
    from kdrt_bench.writing import new_report, write_report

    if suite != "full" and (real is not None or side is not None):
        raise InvalidRequestError(
            f"--real and --side are for the networks of the full suite, and --suite is {suite}; "
            "leave them out or add --suite full"
        )
    chosen, keys = _names(versus), _names(only)
    if update and keys is None:
        raise InvalidRequestError(
            "--update measures the experiments of --only again; name some, or leave --update out "
            "to measure all"
        )
    peers_of(suite, chosen)
    model = model_of(bundle)
    cores = threads or examine().cores
    before = report_to_update(output, suite, cores) if update else None
    with new_report(output) as partial:
        with BenchProgress() as progress:
            large = None
            if suite == "full" and real != "none":
                progress.say(f"export {real or _REAL} with random weights")
                large = real_size(real or _REAL, side)
            found = experiments(suite, model, large, chosen, rounds, Sampling(steps, guidance))
            plans = selected(found, keys)
            if before is not None:
                check_same_work(before, plans, output)
            report = Measurement(suite, cores, partial, watch=progress.say).report(plans)
        print_table(report)
        failed = report.failed()
        if before is not None and keys is not None:
            report = updated(before, report, keys, [each.key for each in found])
        # Before the files: figures that took half an hour are not lost to a full disk.
        typer.echo(report.model_dump_json())
        if before is not None:
            keep_images(before, output, partial)
        write_report(report, partial)
    typer.echo(f"{output}: report.html, report.json", err=True)
    if failed:
        raise typer.Exit(1)


def _names(text: str | None) -> tuple[str, ...] | None:
    """What an option with commas holds; None where it was not given."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None
