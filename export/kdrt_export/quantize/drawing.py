"""The sensitivity scan as a table and as a plot, which a quantised bundle keeps."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from kdrt_export.errors import ExportError
from kdrt_export.quantize.sensitivity import Sensitivity

FOLDER = "quantization"
"""Of a bundle."""

TABLE_FILE = "layers.csv"
PLOT_FILE = "layers.png"

_KINDS = {"convolution": "tab:blue", "linear": "tab:green", "attention": "tab:orange"}

_NAMED = 8
"""Layers whose name is in the plot."""


def check_can_draw() -> None:
    """Raises ExportError: a package that the plot or the figures need is not installed."""
    for package in ("matplotlib", "torchmetrics"):
        if importlib.util.find_spec(package) is None:
            raise ExportError(
                f"quantising needs the package '{package}', which is not installed: "
                "pip install 'kdrt[quantize]'"
            )


def write_table(rows: Sequence[Sensitivity], folder: Path) -> None:
    """Write a line for each layer, in the order of the network."""
    with (folder / TABLE_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", "kind", "error", "quantized"])
        for row in rows:
            table.writerow([row.layer.name, row.layer.kind, row.error, int(row.is_quantized)])


def draw(rows: Sequence[Sensitivity], title: str, max_error: float, folder: Path) -> None:
    """Draw the error of the output when one layer alone is quantised, over the depth.

    Args:
        rows: in the order of the network.
        title: of the plot.
        max_error: the bound of all layers together.
        folder: where the plot goes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    top = 2 * max((row.error for row in rows if math.isfinite(row.error)), default=1.0)
    for kind, colour in _KINDS.items():
        for is_quantized in (True, False):
            places = [
                place
                for place, row in enumerate(rows)
                if row.layer.kind == kind and row.is_quantized == is_quantized
            ]
            heights = [min(rows[place].error, top) for place in places]
            if places:
                label = kind if is_quantized else f"{kind}, left as it was"
                face = colour if is_quantized else "none"
                axes.scatter(places, heights, 22, edgecolors=colour, facecolors=face, label=label)
    axes.axhline(max_error, color="0.6", lw=0.8, ls="--", label=f"bound of all: {max_error:g}")
    axes.set_yscale("log")
    axes.set_ylabel("relative error of the output")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    blocks = [".".join(row.layer.name.split(".")[:2]) for row in rows]
    begins = [place for place, name in enumerate(blocks) if not place or blocks[place - 1] != name]
    axes.set_xticks(begins, [blocks[place] for place in begins], rotation=45, ha="right")
    axes.tick_params(labelsize=7)
    worst = sorted(range(len(rows)), key=lambda place: rows[place].error, reverse=True)[:_NAMED]
    for place in worst:
        axes.annotate(
            rows[place].layer.name.removeprefix(f"{blocks[place]}."),
            (place, min(rows[place].error, top)),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=6,
        )
    figure.savefig(folder / PLOT_FILE, format="png", dpi=120)
