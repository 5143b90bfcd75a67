"""A progress bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[], object]]:
    """Within: a bar of ``steps`` steps; the function given moves it by one. A bar in a log file
    would be a line without meaning, so there is none unless standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Sampling", total=steps)
        yield lambda: bar.advance(task)
