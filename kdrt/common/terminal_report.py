"""The progress of an export or a build on the terminal: one line a stage, with time and memory."""

from __future__ import annotations

import time
from types import TracebackType

import psutil
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from kdrt.common.units import duration, size


class TerminalReport:
    """What exports and builds report to. On a terminal the running stage is a live line with
    spinner, elapsed time and memory; elsewhere only finished stages are printed, one line each.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._process = psutil.Process()
        self._stage = ""
        self._detail = ""
        self._memory: int | None = None
        self._finished = 0
        self._started = 0.0
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def start(self, stage: str) -> None:
        """A stage begins; one still running ends without a mark."""
        self._stop()
        self._stage, self._started = stage, time.perf_counter()
        self._detail, self._memory = "", None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._running,
                console=self._console,
                transient=True,
                refresh_per_second=8,
            )
            self._live.start()

    def running(self, detail: str, memory: int) -> None:
        """What the running stage is at, and the memory of the process that works on it; the peak
        is shown."""
        self._detail, self._memory = detail, max(memory, self._memory or 0)

    def done(self, detail: str = "") -> None:
        """The running stage has ended well. Without one, nothing is shown."""
        if not self._stage:
            return
        elapsed = self._elapsed()
        self._stop()
        line = Text.from_markup(f"[green]✓[/] {escape(self._stage)}")
        self._stage = ""
        self._finished += 1
        line.append(f"  {elapsed}", style="dim")
        if detail:
            line.append(f"  {detail}")
        self._console.print(line)

    def note(self, text: str) -> None:
        """Something the user should know, whatever the stage."""
        self._console.print(Text.from_markup(f"  [yellow]note:[/] {escape(text)}"))

    def warn(self, text: str) -> None:
        """Something that makes the result worse than it should be."""
        self._console.print(Text.from_markup(f"  [bold red]warning:[/] {escape(text)}"))

    def __enter__(self) -> TerminalReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        if self._stage and self._finished and error is not None:
            self._console.print(Text.from_markup(f"[red]✗[/] {escape(self._stage)}"))

    def _elapsed(self) -> str:
        memory = size(self._memory or self._process.memory_info().rss)
        return f"{duration(time.perf_counter() - self._started)}, {memory}"

    def _running(self) -> Spinner:
        text = Text(self._stage)
        text.append(f"  {self._elapsed()}", style="dim")
        if self._detail:
            text.append(f"  {self._detail}")
        self._spinner.update(text=text)
        return self._spinner

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
