"""``kdrt compare``: where two engines, or two bundles, of one network begin to differ."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdrt_export.compare.comparison import Comparison, LayerDifference

_SHOWN = 4
"""Layers that are printed before the first that differs, and behind it."""


def compare(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="The reference.")
    ],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]",
            show_default=False,
            help="Another bundle of the same model. Without it, two engines are compared.",
        ),
    ] = None,
    component: Annotated[
        str, typer.Option(metavar="NAME", help="The network to compare.")
    ] = "unet",
    engines: Annotated[
        str,
        typer.Option(
            metavar="A[,B]",
            help="Engine of each side. [cyan]onnxruntime:fused[/] is ONNX Runtime with its own "
            "operators instead of the standard ones.",
        ),
    ] = "onnxruntime",
    at: Annotated[
        str | None,
        typer.Option(metavar="HxW", show_default="the model's", help="Height and width in pixels."),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Compare every layer, to find the first that differs."),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            show_default=False,
            help="Prompt of the image whose middle step provides the inputs.",
        ),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Use random inputs instead of those of an image.")
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the image or of the random inputs.")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            show_default=False,
            help="Folder for the errors of the layers, as a table and as a plot over the depth.",
        ),
    ] = None,
) -> None:
    """
    Find where two engines, or two exports of a model, begin to differ.

    Both sides get the same inputs, by default those of a real denoising step. With
    [cyan]--layers[/] every layer becomes an output, and kdrt names the first layer whose error
    jumps, which explains a black image in fp16. The layers run in groups, so that a large network
    fits into memory. Polygraphy runs the networks and compares the outputs.

    [bold]Examples[/bold]

      [cyan]kdrt compare sdxl sdxl-fp16 --component vae_decoder --layers -o ./fp16[/cyan]
      [cyan]kdrt compare demo --engines onnxruntime,onnxruntime-cuda[/cyan]
      [cyan]kdrt compare demo --engines onnxruntime,onnxruntime:fused --layers --at 64x64[/cyan]
      [cyan]kdrt compare sd15-fp16 --engines onnxruntime,tensorrt-rtx --layers[/cyan]
    """
    from kdrt.bundle import open_bundle
    from kdrt.cli.export_checks import needs_export
    from kdrt.cli.size_option import height_and_width
    from kdrt.common.paths import user_path

    height, width = height_and_width(at)
    bundles = [open_bundle(name) for name in (bundle, other) if name is not None]
    with needs_export("comparing"):
        from kdrt_export.compare.comparison import Graph
        from kdrt_export.compare.comparison import compare as compare_graphs
        from kdrt_export.compare.drawing import check_output, draw, write_table
        from kdrt_export.compare.inputs import PROMPT, real_inputs, seeded_inputs
        from kdrt_export.compare.sides import pair_of

    folder = None if output is None else user_path(output)
    if folder is not None:  # a comparison takes minutes
        check_output(folder)
    first, second = pair_of(bundles, component, engines.split(","))
    if random:
        inputs = seeded_inputs(bundles[0], first.facts, height=height, width=width, seed=seed)
    else:
        inputs = real_inputs(
            bundles[0],
            component,
            height=height,
            width=width,
            prompt=PROMPT if prompt is None else prompt,
            seed=seed,
        )
    comparison = compare_graphs(
        Graph(first.path, first.engine), Graph(second.path, second.engine), inputs, layers=layers
    )
    _print(comparison, f"a: {first.label()}\nb: {second.label()}", layers=layers)
    if folder is not None:
        typer.echo(write_table(comparison, folder))
        title = f"{component}: {second.label()} against {first.label()}"
        typer.echo(draw(comparison, title, folder))


def _print(comparison: Comparison, title: str, *, layers: bool) -> None:
    from kdrt.cli.console import print_table

    rows, first = comparison.rows, comparison.first()
    shown = rows
    if layers:
        place = rows.index(first) if first is not None else len(rows) - 1
        shown = rows[max(place - _SHOWN, 0) : place + _SHOWN + 1]
    print_table(
        ("error#", "largest in a#", "largest in b#", "layer"),
        [_cells(row, first) for row in shown],
        title=title,
    )
    typer.echo()
    for line in _summary(comparison, first, layers=layers):
        typer.echo(line)


def _cells(row: LayerDifference, first: LayerDifference | None) -> tuple[str, str, str, str]:
    a, b = row.difference.greatest
    mark = "  <- first" if row is first else ""
    return _number(row.difference.error), f"{a:.4g}", f"{b:.4g}", f"{row.layer.name}{mark}"


def _number(error: float) -> str:
    return f"{error:.1e}" if math.isfinite(error) else "not finite"


def _summary(comparison: Comparison, first: LayerDifference | None, *, layers: bool) -> list[str]:
    what = "layers" if layers else "outputs"
    lines = []
    if comparison.unmatched:
        lines.append(
            f"{len(comparison.rows)} {what} have the same name in both graphs and were compared; "
            f"{comparison.unmatched} layers of a have no equal in b"
        )
    if first is None:
        worst = max(comparison.rows, key=lambda row: row.difference.error)
        error = _number(worst.difference.error)
        lines.append(f"both agree: the largest error is {error}, of {worst.layer.name}")
    elif not layers:
        lines.append(f"{first.layer.name} differs; --layers says where that begins")
    elif not first.difference.finite[0]:
        lines.append(f"{first.layer.name} is not finite in a: neither side can be right from there")
    elif not first.difference.finite[1]:
        lines.append(
            f"{first.layer.name} is the first layer of b that is not finite, where a has values up "
            f"to {first.difference.greatest[0]:.4g}"
        )
    elif first.jumps:
        lines.append(
            f"{first.layer.name} is the first layer whose error jumps: "
            f"{_number(first.before)} before it, {_number(first.difference.error)} behind"
        )
    else:
        lines.append(
            f"no layer's error jumps; it passes the bound at {first.layer.name} "
            f"with {_number(first.difference.error)}"
        )
    return lines
