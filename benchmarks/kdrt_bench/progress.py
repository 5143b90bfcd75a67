"""What ``kdrt bench`` says while it runs, and its tables; all of it on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kdrt.common.units import duration as long_duration
from kdrt_bench.report import ExperimentReport, Report, Row
from kdrt_bench.words import duration, likeness, memory, speedup


class BenchProgress:
    """On a terminal one line that tells what runs now; elsewhere a line for all but the runs."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._what = ""
        self._begun = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def say(self, what: str) -> None:
        """This happens now."""
        self._what = what
        if self._live is None and ": run " not in what:
            self.console.print(escape(what))

    def __enter__(self) -> BenchProgress:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._line,
                console=self.console,
                transient=True,
                refresh_per_second=8,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> Spinner:
        elapsed = long_duration(time.monotonic() - self._begun)
        self._spinner.update(text=Text(f"{self._what}  {elapsed}", overflow="ellipsis"))
        return self._spinner


def print_table(report: Report) -> None:
    """Every experiment as a table."""
    console = Console(stderr=True, highlight=False)
    for experiment in report.experiments:
        console.print(_table(experiment))
        for row in experiment.rows:
            if row.failed:
                console.print(f"{escape(row.title)} did not run: {escape(row.failed)}")
        console.print()


def _table(experiment: ExperimentReport) -> Table:
    table = Table(
        title=escape(experiment.title),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    if len(experiment.points) > 1:
        table.add_column(experiment.axis, justify="right")
    table.add_column("row", no_wrap=True)
    for heading in ("median", "p90", f"× {experiment.anchor}", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("likeness", overflow="fold")
    for row in experiment.rows:
        cells = [f"{row.point:g}"] if len(experiment.points) > 1 else []
        table.add_row(*cells, *_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    title = escape(row.title) + (" (lossy)" if row.lossy else "")
    if row.seconds is None:
        return [title, "", "", "", "", "did not run"]
    return [
        title,
        duration(row.seconds.p50),
        duration(row.seconds.p90),
        speedup(row),
        memory(row.memory_peak),
        likeness(row),
    ]
