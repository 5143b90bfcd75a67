"""A progress bar that can be configured as diffusers' can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(steps: int, options: Mapping[str, Any]) -> Iterator[Callable[[], object]]:
    """Yields what to call after every step.

    Args:
        steps: how many there will be.
        options: of tqdm, which diffusers uses: ``disable``, ``desc`` and ``leave`` are honoured.
    """
    if options.get("disable"):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    transient = not options.get("leave", True)
    # In a log file a bar is only a line without meaning.
    with Progress(console=console, transient=transient, disable=not console.is_terminal) as bar:
        task = bar.add_task(str(options.get("desc") or "Sampling"), total=steps)
        yield lambda: bar.advance(task)
