"""The report of in-flight batching under load, as tables and as a plot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from kdrt.backends.doctor import examine
from kdrt_bench.jobs import Strict
from kdrt_bench.plots import LOSSY, OURS, THEIRS
from kdrt_bench.service_study import (
    BESIDE,
    IN_FLIGHT,
    MAIN,
    ONE,
    ROWS,
    STATIC,
    VARIED_IMAGES,
    VARIED_ROWS,
    CellReport,
    ModelReport,
    images_way,
    rows_way,
)
from kdrt_bench.words import duration
from kdrt_engines.installed import installed_version

_COLOURS = {ONE: THEIRS, STATIC: LOSSY, IN_FLIGHT: OURS}
_PACKAGES = ("kdrt", "torch", "onnxruntime")


class InFlightReport(Strict):
    """All of it, and the machine it is of."""

    machine: dict[str, str]
    models: tuple[ModelReport, ...]


def machine() -> dict[str, str]:
    """What the figures depend on."""
    seen = examine()
    return {
        "processor": seen.processor,
        "cores": str(seen.cores),
        "load at the end": f"{os.getloadavg()[0]:.1f}",
        "threads": str(torch.get_num_threads()),
        **{name: found for name in _PACKAGES if (found := installed_version(name))},
    }


def markdown(report: InFlightReport) -> str:
    """The tables of every model, with the machine above them."""
    about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    return "\n".join([f"{about}.", *(_of_model(model) for model in report.models)])


def _of_model(model: ModelReport) -> str:
    kinds = ", ".join(f"{kind} {duration(taken)}" for kind, taken in model.alone.items())
    loads = list(dict.fromkeys(cell.load for cell in model.cells))
    compared = [
        ("The three ways", [cell for cell in model.cells if cell.way in MAIN]),
        (
            f"Most rows of a UNet run; without a number {ROWS}",
            _cells(model, loads, map(rows_way, sorted((*VARIED_ROWS, ROWS))), {0.7, 1.1}),
        ),
        (
            f"Most images in flight, with {ROWS} rows; without a number {ROWS}",
            _cells(model, loads, map(images_way, sorted((*VARIED_IMAGES, ROWS))), {0.7}),
        ),
        ("Where images are decoded", _cells(model, loads, (IN_FLIGHT, BESIDE), {0.7})),
    ]
    return "\n".join(
        [
            f"\n## {model.model}\n",
            f"Alone: {kinds}. One at a time {model.capacity:.3g} requests a second; "
            f"after all traces the same took {model.drift:.2f} times as long. "
            f"{model.rounds} rounds; "
            f"it took {model.seconds:.0f} s.",
            *(f"\n### {title}\n\n{_table(cells)}" for title, cells in compared if cells),
            f"\n### A lone request\n\n{_lone(model)}",
            f"\n### A tick\n\n{_parts(model)}",
        ]
    )


def _cells(
    model: ModelReport, loads: Sequence[float], ways: Iterable[str], wanted: set[float]
) -> list[CellReport]:
    names = list(ways)
    found = [model.find(load, way) for load in loads if load in wanted for way in names]
    return [cell for cell in found if cell is not None]


def _table(cells: Sequence[CellReport]) -> str:
    lines = [
        "| load | | requests | latency p50 | p90 | p99 | images/s | slowdown p50 | p99 "
        "| of the shortest, p50 |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        seen = cell.service
        columns = [
            f"{cell.load:.0%}",
            cell.way,
            str(cell.requests),
            duration(seen.latency.p50),
            duration(seen.latency.p90),
            duration(seen.latency.p99),
            f"{seen.images_per_second:.3g}",
            f"{seen.slowdown.p50:.2f}",
            f"{seen.slowdown.p99:.2f}",
            f"{seen.slowdown_of_short.p50:.2f}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _lone(model: ModelReport) -> str:
    lines = [
        "| request | pipeline | batcher over pipeline, median | interval | quartiles | rounds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for lone in model.lone:
        low, high = lone.ratio.low, lone.ratio.high
        interval = "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
        lines.append(
            f"| {lone.request} | {duration(lone.pipeline)} | {lone.ratio.median:.3f} | {interval} "
            f"| {lone.quartiles[0]:.3f}–{lone.quartiles[1]:.3f} | {lone.ratio.n} |"
        )
    return "\n".join(lines)


def _parts(model: ModelReport) -> str:
    parts = model.parts
    by_rows = ", ".join(
        f"{duration(taken)} with {rows} row{'' if rows == '1' else 's'}"
        for rows, taken in model.seconds_by_rows.items()
    )
    return "\n".join(
        [
            f"A UNet run takes {by_rows}.",
            "",
            f"{parts.ticks} ticks of {parts.images:.1f} images in the mean.",
            "",
            "| part | milliseconds a tick |",
            "|---|---:|",
            *(f"| {part} | {taken:.3f} |" for part, taken in parts.milliseconds.items()),
        ]
    )


def draw(report: InFlightReport, path: Path) -> None:
    """Median and 99th percentile of the latency over the load, and images a second; a row of plots
    for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9 * len(report.models) + 0.3), layout="constrained")
    grid = figure.subplots(len(report.models), 3, squeeze=False)
    for row, model in zip(grid, report.models, strict=True):
        for axes, title in zip(row, ("p50", "p99", "images a second"), strict=True):
            for way in MAIN:
                cells = [cell for cell in model.cells if cell.way == way]
                values = [
                    {
                        "p50": cell.service.latency.p50,
                        "p99": cell.service.latency.p99,
                    }.get(title, cell.service.images_per_second)
                    for cell in cells
                ]
                loads = [100 * cell.load for cell in cells]
                axes.plot(loads, values, "o-", color=_COLOURS[way], label=way)
            axes.set_title(f"{model.model}: {title}", fontsize=9)
            axes.set_xlabel("load, % of one at a time", fontsize=8)
            axes.set_ylim(bottom=0)
            if title.startswith("p"):
                axes.set_ylabel("seconds", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
