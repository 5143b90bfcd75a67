"""The report as one page that needs nothing else: images and plots are inside."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path

from kdrt_bench import words
from kdrt_bench.plots import plot_of
from kdrt_bench.report import ExperimentReport, Report


def page_of(report: Report, folder: Path) -> str:
    """HTML of a report.

    Args:
        report: what was measured.
        folder: where its images are.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        duration=words.duration, memory=words.memory, speedup=words.speedup, likeness=words.likeness
    )
    template = environment.from_string(
        (resources.files("kdrt_bench") / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        machine=report.machine,
        headlines=headlines(report),
        plot_of=plot_of,
        image=lambda row: _data_uri(folder / row.image) if row.image else "",
        anchor=_anchor,
        has=_has,
    )


def headlines(report: Report) -> list[tuple[str, str, str]]:
    """What people look for first: by experiment, kdrt's speed-up, its time, and its likeness."""
    found = []
    for experiment in report.experiments:
        for row in experiment.rows:
            if row.label == "kdrt" and experiment.kind in ("rows", "startup") and row.speedup:
                time = words.duration(row.seconds.p50 if row.seconds else None)
                interval = words.speedup(row).partition("× ")[2]
                beside = f"{interval} the speed of {_anchor(experiment)}: {time}"
                if row.likeness is not None:
                    beside += f", likeness {words.likeness(row)}"
                found.append((f"{row.speedup.median:.2f} ×", experiment.title, beside))
    return found


def _anchor(experiment: ExperimentReport) -> str:
    """What ratios and likeness are to."""
    titles = [row.title for row in experiment.rows if row.label == experiment.anchor]
    return titles[0] if titles else experiment.anchor


def _has(experiment: ExperimentReport, attribute: str) -> bool:
    """Whether any row has a figure, or its column would be empty."""
    return any(getattr(row, attribute) not in (None, {}, "") for row in experiment.rows)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
