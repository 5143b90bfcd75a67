"""Plots as SVG that belongs to its page: text in the page's colour and typeface, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from kdrt_bench.report import ExperimentReport, Row
from kdrt_bench.stages import STAGES
from kdrt_bench.startup import STAGES as STARTUP_STAGES
from kdrt_bench.words import duration

_INK = "#010203"
"""Stands for the colour of the page's text until the SVG is written."""

OURS, THEIRS, LOSSY = "#2f7fb8", "#9aa3ad", "#c9a86a"
_STAGE_COLOURS = ("#8a6fb5", "#2f7fb8", "#3d9a78", "#c26d5a", "#c3c9cf")
_LINES = ("#9aa3ad", "#2f7fb8", "#3d9a78", "#c9a86a")
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's typeface
    "svg.hashsalt": "kdrt",
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}
_WIDTH = 7.6
_ROW = 0.36
_TITLE = 36
"""Letters of a row's title that stand side by side."""


def plot_of(experiment: ExperimentReport) -> str:
    """The plot that shows an experiment, as SVG; empty where nothing was measured."""
    import matplotlib

    rows = [row for row in experiment.rows if row.seconds is not None]
    if not rows:
        return ""
    # Its settings are the process's: other drawings must not take on ours.
    with matplotlib.rc_context(_STYLE):
        return _drawn(experiment, rows)


def _drawn(experiment: ExperimentReport, rows: Sequence[Row]) -> str:
    if experiment.kind == "curve":
        return _curve(experiment, rows)
    if experiment.kind == "server":
        return _latencies(rows)
    if len({stage for row in rows for stage in row.stages}) > 1:
        return _stages(rows, STARTUP_STAGES if experiment.kind == "startup" else STAGES)
    return _bars(rows)


def _bars(rows: Sequence[Row]) -> str:
    """Medians, with a line from the fastest run to the 90th percentile."""
    figure, axes, unit = _horizontal(rows)
    for place, row in enumerate(rows):
        assert row.seconds is not None
        colour = OURS if row.peer == "kdrt" else LOSSY if row.lossy else THEIRS
        axes.barh(place, row.seconds.p50 * unit, 0.62, color=colour)
        _spread(axes, place, row, unit)
    return _svg(figure)


def _stages(rows: Sequence[Row], stages: Sequence[str]) -> str:
    """Medians of the stages end to end; what is left of the median is the host's own."""
    figure, axes, unit = _horizontal(rows)
    for place, row in enumerate(rows):
        assert row.seconds is not None
        left = 0.0
        for stage, colour in zip(stages, _STAGE_COLOURS, strict=False):
            width = row.stages.get(stage, 0.0) * unit
            label = stage if place == 0 else None
            axes.barh(place, width, 0.62, left=left, color=colour, label=label)
            left += width
        rest = row.seconds.p50 * unit - left
        if rest > 0 and stages is STAGES:
            label = "host" if place == 0 else None
            axes.barh(place, rest, 0.62, left=left, color=_STAGE_COLOURS[-1], label=label)
        _spread(axes, place, row, unit)
    axes.legend(
        frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1), labelcolor=_INK, fontsize=9
    )
    return _svg(figure)


def _horizontal(rows: Sequence[Row]) -> tuple[Any, Any, float]:
    """A figure for a bar a row, its axes, and what turns seconds into their unit."""
    ends = [max(row.seconds.p50, row.seconds.p90) for row in rows if row.seconds]
    unit, name = (1.0, "seconds") if max(ends) > 2 else (1000.0, "milliseconds")
    figure, axes = _figure(_ROW * len(rows) + 0.9)
    axes.set_yticks(range(len(rows)), [fill(row.title, _TITLE) for row in rows])
    axes.invert_yaxis()
    # Below the whole figure: beside long titles the axes are narrower than this.
    figure.supxlabel(
        f"{name}, median; the line goes from the fastest run to the 90th percentile", fontsize=9
    )
    axes.set_xlim(0, max(ends) * unit * 1.16)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes, unit


def _spread(axes: Any, place: int, row: Row, unit: float) -> None:
    assert row.seconds is not None
    low, high = row.seconds.minimum * unit, row.seconds.p90 * unit
    axes.plot([low, high], [place, place], color=_INK, linewidth=1)
    axes.annotate(
        duration(row.seconds.p50),
        (max(high, row.seconds.p50 * unit), place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=_INK,
    )


def _curve(experiment: ExperimentReport, rows: Sequence[Row]) -> str:
    """Median time by point, a line for each row, with the spread shaded."""
    figure, axes = _figure(3.0)
    labels = list(dict.fromkeys(row.label for row in rows))
    for label, colour in zip(labels, _LINES, strict=False):
        own = [row for row in rows if row.label == label]
        x = [row.point for row in own]
        seconds = [row.seconds for row in own if row.seconds is not None]
        axes.plot(x, [s.p50 * 1000 for s in seconds], "o-", color=colour, label=own[0].title)
        axes.fill_between(
            x,
            [s.minimum * 1000 for s in seconds],
            [s.p90 * 1000 for s in seconds],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    axes.set_xlabel(experiment.axis)
    axes.set_ylabel("milliseconds a run, median")
    axes.set_xticks(experiment.points, [f"{point:g}" for point in experiment.points])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure)


def _latencies(rows: Sequence[Row]) -> str:
    """Of each row, how many requests were answered within a time."""
    figure, axes = _figure(2.8)
    for row, colour in zip(rows, _LINES, strict=False):
        ordered = sorted(row.samples)
        share = [(place + 1) / len(ordered) * 100 for place in range(len(ordered))]
        axes.step([s * 1000 for s in ordered], share, where="post", color=colour, label=row.title)
    axes.set_xlabel("milliseconds from arrival to answer")
    axes.set_ylabel("% of requests answered")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, labelcolor=_INK, loc="lower right")
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Type": None, "Format": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Scales with the page, and takes its colour and typeface.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return text.replace(_INK, "currentColor")
