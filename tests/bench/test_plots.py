"""What is written in a plot can be read: nothing of it is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdrt_bench import plots
from kdrt_bench.report import ExperimentReport, read_report

REPORT = Path(__file__).parents[2] / "benchmarks" / "results" / "full" / "report.json"


@pytest.mark.parametrize("experiment", read_report(REPORT).experiments, ids=lambda e: e.key)
def test_every_text_is_inside_its_figure(
    experiment: ExperimentReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure) -> str:
        drawn.append(figure)
        return ""

    monkeypatch.setattr(plots, "_svg", keep)
    plots.plot_of(experiment)
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    texts = [*figure.texts, *axes.texts, axes.xaxis.label, axes.yaxis.label]
    for text in filter(lambda text: text.get_text(), texts):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
