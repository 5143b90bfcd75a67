"""The errors over the depth of the network: a plot, and a table in a file."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from itertools import groupby
from pathlib import Path

from kdrt.common.atomic_io import check_file, new_file
from kdrt.errors import InvalidRequestError
from kdrt_export.compare.comparison import BOUND, Comparison

PLOT_FILE = "layers.png"
TABLE_FILE = "layers.csv"

_MOST_NAMES = 24
"""Of blocks below the plot; more would run into each other."""


def check_output(folder: Path) -> None:
    """Whether a plot and a table can be written there; for the time before they are made.

    Raises:
        InvalidRequestError: matplotlib is not installed.
        OutputError: see :func:`kdrt.common.atomic_io.check_file`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequestError("drawing needs matplotlib: pip install 'kdrt[bench]'")
    for name in (TABLE_FILE, PLOT_FILE):
        check_file(folder / name)


def write_table(comparison: Comparison, folder: Path) -> Path:
    """Write a line for each layer, and return the file."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["layer", "tensor", "error", "error_before", "greatest_a", "greatest_b"])
    for row in comparison.rows:
        difference = row.difference
        table.writerow(
            [row.layer.name, row.layer.tensor, difference.error, row.before, *difference.greatest]
        )
    with new_file(folder / TABLE_FILE) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    return folder / TABLE_FILE


def draw(comparison: Comparison, title: str, folder: Path) -> Path:
    """Draw the error of every layer in the order of the network, and return the file. That
    matplotlib is there is for :func:`check_output` to say."""
    from matplotlib.figure import Figure

    rows = comparison.rows
    errors = [row.difference.error for row in rows]
    finite = [error for error in errors if 0 < error < math.inf]
    top = 10 * max(finite, default=1.0)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    depths = range(len(rows))
    axes.plot(depths, [e if math.isfinite(e) else math.nan for e in errors], marker=".", lw=0.8)
    broken = [depth for depth, error in enumerate(errors) if not math.isfinite(error)]
    if broken:
        axes.plot(broken, [top] * len(broken), "rx", label="not finite")
    axes.axhline(BOUND, color="0.6", lw=0.8, ls="--", label=f"{BOUND:g}")
    first = comparison.first()
    if first is not None:
        axes.axvline(rows.index(first), color="tab:red", lw=0.8, label=first.layer.name)
    axes.set_yscale("log")
    axes.set_ylabel("relative error")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    begins = [
        (next(iter(block))[0], name)
        for name, block in groupby(enumerate(rows), key=lambda each: _block(each[1].layer.module))
    ]
    shown: list[tuple[int, str]] = []
    for depth, name in begins:
        if not shown or depth - shown[-1][0] >= len(rows) / _MOST_NAMES:
            shown.append((depth, name))
    axes.set_xticks(
        [depth for depth, _ in shown], [name for _, name in shown], rotation=60, ha="right"
    )
    axes.tick_params(labelsize=7)
    with new_file(folder / PLOT_FILE) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return folder / PLOT_FILE


def _block(module: str) -> str:
    """The first parts of a path: ``up_blocks.1``, ``decoder.mid_block``."""
    return ".".join(module.split(".")[:2])
