"""Starts one process a part while there is time, and ends those that hang."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrt_bench.gpu_day.rows import Row, RowFile

PATIENCE = 2.0
"""How many times its estimate a part may take before it is ended."""


@dataclass(frozen=True)
class Part:
    """Rows that one process makes.

    Attributes:
        name: of the part.
        seconds: that it is likely to take, its start included.
    """

    name: str
    seconds: float


RunPart = Callable[[Part, float], str]
"""Runs a part for at most so many seconds; says what went wrong, or nothing."""


def run_parts(
    parts: Sequence[Part],
    seconds: float,
    run: RunPart,
    rows: RowFile,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the parts in order. One that is not likely to end in time is a row that says so, and so
    is one that went wrong; the next may still fit.

    Args:
        parts: the most important first.
        seconds: for all of them.
        run: runs one.
        rows: where their rows come.
        say: is told every row, as a line of a table.
        clock: in seconds.
    """
    end = clock() + seconds
    for part in parts:
        said = len(rows.read())
        left = end - clock()
        if part.seconds > left:
            text = (
                f"skipped: it takes about {part.seconds:.0f} s, and {max(left, 0):.0f} s are left"
            )
            rows.add(Row(part.name, "all", failed=text))
        else:
            wrong = run(part, min(left, PATIENCE * part.seconds))
            if wrong:
                rows.add(Row(part.name, "the rest", failed=wrong))
        for row in rows.read()[said:]:
            say(row.line())


def run_process(command: Sequence[str], limit: float, log: Path) -> str:
    """Run a command, and end it with its children when it has taken too long.

    Args:
        command: its words.
        limit: seconds.
        log: gets what it prints.

    Returns:
        What went wrong, or nothing.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"ended after {limit:.0f} s; {log.name} has what it said"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"exit code {code}; {log.name} has what it said" if code else ""
